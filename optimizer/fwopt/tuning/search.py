"""The search over variants: measure next where the workload is expected to save most.

Every bucket's default is measured first. Then a Gaussian process over (variant, bucket) says what each measurement
not yet made may save: expected improvement x how often the workload makes that call. Measurements are short; the best
few of each bucket are measured again, longer and beside the default, and by those the winner is chosen (successive
halving).

Not Optuna: its samplers know nothing between studies, and one study a bucket would learn each bucket from nothing; what
serves here is one model over all of them. Deterministic for equal measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fwopt.tuning.surrogate import Belief, Floats, Surrogate, expected_saving

STAY = 6
"""Measurements at one bucket before another is considered: changing it costs new inputs and a new reference."""
FIRST_LOOKS = 8
"""Variants spread over the space that are measured at the heaviest bucket before anything is inferred."""
FINALISTS = (3, 1)
"""Variants a bucket that are measured again, rung by rung."""
COUNTS = 0.01
"""Share of its family's time from which on a bucket's finals are run; elsewhere short measurements decide."""
EFFORTS_S = (0.004, 0.02, 0.08)
"""Time each measurement runs for: while searching, then rung by rung."""
WORTH = 5e-5
"""Share of the family's time below which an expected saving is not looked for."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One variant at one bucket."""

    seconds: float
    noise: float
    """Spread over median."""
    effort: int
    """Index into EFFORTS_S."""


Ask = Callable[[int, int, float], "Measured | str"]
"""(bucket, variant, seconds to measure for) -> what it took, or why it cannot be used."""


@dataclass(slots=True)
class FamilySearch:
    """The variants of one family over its buckets."""

    features: Floats
    """(V, F) numbers in which like variants lie near each other"""
    places: Floats
    """(B, A) log2 of the buckets' sizes"""
    floors_s: Floats
    """(B,) the least that a call can take: what makes times of different buckets comparable"""
    calls: Floats
    """(B,) how often the workload calls each bucket"""
    defaults: tuple[int, ...] | None = None
    """(B,) the variant that runs there untuned; None: variant 0 everywhere"""
    suits: NDArray[np.bool_] | None = None
    """(B, V) whether the variant is measured there; None: all are, everywhere"""
    seed: int = 0
    seen: dict[tuple[int, int], Measured] = field(default_factory=dict)
    """(bucket, variant) -> its longest measurement"""
    refused: dict[int, str] = field(default_factory=dict)
    """variant -> why it cannot be used"""
    _surrogate: Surrogate = field(init=False)
    _planned: list[tuple[int, int]] = field(default_factory=list)
    _left_here: int = 0
    _here: int = 0

    def __post_init__(self) -> None:
        self._surrogate = Surrogate(self.features, self.places)
        order = np.argsort(-self.calls * self.floors_s, kind="stable")
        self._planned = [(int(b), self.default(int(b))) for b in order]
        spread = _spread(self.features, FIRST_LOOKS, self.seed)
        self._planned[1:1] = [(int(order[0]), v) for v in spread if v != self.default(int(order[0]))]

    def default(self, bucket: int) -> int:
        return 0 if self.defaults is None else self.defaults[bucket]

    def next(self) -> tuple[float, int, int] | None:
        """(expected saving in seconds of the workload, bucket, variant); None where nothing is worth it."""
        while self._planned:
            bucket, variant = self._planned[0]
            unsuited = self.suits is not None and not self.suits[bucket, variant]
            if unsuited or variant in self.refused or (bucket, variant) in self.seen:
                self._planned.pop(0)
                continue
            return math.inf, bucket, variant
        found = self._savings()
        if found is None:
            return None
        savings, total = found
        if self._left_here > 0 and savings[self._here].max() > 0.5 * savings.max():
            bucket = self._here
        else:
            bucket = int(savings.max(axis=1).argmax())
            self._here, self._left_here = bucket, STAY
        variant = int(savings[bucket].argmax())
        saving = float(savings[bucket, variant])
        return (saving, bucket, variant) if saving > WORTH * total else None

    def _savings(self) -> tuple[Floats, float] | None:
        """((B, V) expected savings of measurements not yet made, time of the workload with the best known)."""
        best = self.best_logs()
        if np.isnan(best).all():
            return None
        belief = self._belief()
        cautious = (belief.mean + 2 * belief.deviation).min(axis=1)
        spent = self.calls * self.floors_s * np.exp(np.where(np.isnan(best), cautious, best))
        savings = expected_saving(belief, np.where(np.isnan(best), cautious, best)) * spent[:, None]
        for b, v in self.seen:
            savings[b, v] = 0.0
        for v in self.refused:
            savings[:, v] = 0.0
        if self.suits is not None:
            savings[~self.suits] = 0.0
        return savings, float(spent.sum())

    def _belief(self) -> Belief:
        keys = [key for key in self.seen if key[1] not in self.refused]
        bucket, variant = (np.asarray([key[i] for key in keys], dtype=np.intp) for i in (0, 1))
        times = np.log([self.seen[key].seconds / self.floors_s[key[0]] for key in keys])
        noise = np.asarray([self.seen[key].noise for key in keys])
        return self._surrogate.beliefs(variant, bucket, times, noise)

    def best_logs(self) -> Floats:
        """(B,) log of best time over floor; NaN where nothing was measured."""
        best = np.full(len(self.calls), np.nan)
        for (b, v), found in self.seen.items():
            if v not in self.refused:
                best[b] = np.fmin(best[b], np.log(found.seconds / self.floors_s[b]))
        return best

    def tell(self, bucket: int, variant: int, found: Measured | str) -> None:
        self._left_here -= 1
        if isinstance(found, str):
            self.refused.setdefault(variant, found)
        else:
            self.seen[bucket, variant] = found

    def buckets_that_count(self) -> list[int]:
        """Those that make up more than `COUNTS` of the family's time."""
        times = np.nan_to_num(self.calls * self.floors_s * np.exp(self.best_logs()))
        return [int(b) for b in np.flatnonzero(times > COUNTS * times.sum())]

    def finalists(self, bucket: int, count: int) -> list[int]:
        """The fastest known there, and the default."""
        known = [(m.seconds, v) for (b, v), m in self.seen.items() if b == bucket and v not in self.refused]
        best = [v for _, v in sorted(known)[:count]]
        default = self.default(bucket)
        return best if default in best or default in self.refused else [*best, default]

    def winner(self, bucket: int) -> int | None:
        """Of those measured longest, the fastest; the default where the gain is within its noise; None: none runs."""
        known = {v: m for (b, v), m in self.seen.items() if b == bucket and v not in self.refused}
        if not known:
            return None
        longest = max(m.effort for m in known.values())
        final = {v: m for v, m in known.items() if m.effort == longest}
        best, default = min(final, key=lambda v: (final[v].seconds, v)), final.get(self.default(bucket))
        if default is not None and final[best].seconds >= default.seconds * (1 - min(default.noise, 0.02) / 2):
            return self.default(bucket)
        return best


def _spread(features: Floats, count: int, seed: int) -> list[int]:
    """The default and others, each as far as possible from those before it; ties by seed."""
    span = np.ptp(features, axis=0)
    scaled = (features - features.min(axis=0)) / np.where(span > 0, span, 1.0)
    ties = np.random.default_rng(seed).random(len(features)) * 1e-6
    chosen = [0]
    distance = ((scaled - scaled[0]) ** 2).sum(-1)
    while len(chosen) < min(count, len(features)):
        far = int((distance + ties).argmax())
        chosen.append(far)
        distance = np.minimum(distance, ((scaled - scaled[far]) ** 2).sum(-1))
    return chosen


def run(families: list[FamilySearch], asks: list[Ask], time_left: Callable[[], bool]) -> bool:
    """Search all families until nothing is worth measuring or time is up (False); each ends with its finals.

    `time_left` says whether the search may go on; the finals are run in any case, so leave time for them.
    """
    complete = _explore(families, asks, time_left)
    for family, ask in zip(families, asks, strict=True):
        for bucket in family.buckets_that_count():
            for rung, count in enumerate(FINALISTS, start=1):
                for variant in family.finalists(bucket, count):
                    family.tell(bucket, variant, ask(bucket, variant, EFFORTS_S[rung]))
    return complete


def _explore(families: list[FamilySearch], asks: list[Ask], time_left: Callable[[], bool]) -> bool:
    offers = [family.next() for family in families]
    at = None
    stay = 0
    while any(offer is not None for offer in offers):
        if not time_left():
            return False
        if at is None or stay <= 0 or offers[at] is None:
            at = max((i for i, o in enumerate(offers) if o is not None), key=lambda i: (offers[i] or (0.0,))[0])
            stay = STAY
        offer = offers[at]
        assert offer is not None
        _, bucket, variant = offer
        families[at].tell(bucket, variant, asks[at](bucket, variant, EFFORTS_S[0]))
        offers[at] = families[at].next()
        stay -= 1
    return True
