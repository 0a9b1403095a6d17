"""Paired scores of two servers: what their difference may be, and what that decides.

Interval: Tango's score interval for a difference of paired proportions (T. Tango, Statistics in Medicine 17, 1998,
891-908), which keeps its coverage with few items and with no disagreement at all. Test: exact McNemar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fwopt.spec.evals import CONFIDENCE, Difference, Paired, Verdict

DRAWS = 2000
MOST_ITEMS = 1e7
"""A number of items beyond this is not foreseen."""
_LEAST_GRADED = 10
"""Fewer items than this with scores between 0 and 1: no interval is honest."""


def paired(
    reference: Sequence[float], this: Sequence[float], *, margin: float, seed: int = 0, confidence: float = CONFIDENCE
) -> Paired:
    """Scores of the same items, in the same order."""
    before, after = np.asarray(reference, np.float64), np.asarray(this, np.float64)
    change = after - before
    losses, gains, items = int((change < 0).sum()), int((change > 0).sum()), len(change)
    binary = bool(np.isin(np.concatenate([before, after]), (0.0, 1.0)).all())
    exact = binary or losses + gains == 0
    found = tango(gains, losses, items, confidence) if exact else bootstrap(change, seed, confidence)
    p = mcnemar(gains, losses)
    verdict = decide(found, p, margin, confidence)
    more = None
    if verdict == "undecided":
        more = more_items(gains, losses, items, margin, confidence) if exact else _more_graded(found, items, margin)
    return Paired(
        items=items, reference=float(before.mean()), score=float(after.mean()), only_reference=losses, only_this=gains,
        difference=found, method="Tango" if exact else "bootstrap", p_value=p, verdict=verdict, more_items=more,
    )  # fmt: skip


def decide(found: Difference, p_value: float, margin: float, confidence: float = CONFIDENCE) -> Verdict:
    """Both ends of the two-sided interval are used, so each verdict errs in at most half of 1 - confidence."""
    if found.low >= -margin:
        return "not worse"
    return "worse" if found.high < 0 and p_value < 1 - confidence else "undecided"


def mcnemar(gains: int, losses: int) -> float:
    """Two-sided exact p-value that items are gained and lost alike."""
    from scipy.stats import binomtest

    return float(binomtest(losses, gains + losses).pvalue) if gains + losses else 1.0


def tango(gains: float, losses: float, items: float, confidence: float = CONFIDENCE) -> Difference:
    """`gains`: items that only the new server gets right. Fractions are taken as they are (`more_items`)."""
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    value = (gains - losses) / items

    def score(difference: float) -> float:
        """Standardised distance, falling in `difference`; the nuisance share at its restricted maximum."""
        distance = gains - losses - items * difference
        a, c = 2 * items, -losses * difference * (1 - difference)
        b = -gains - losses + (2 * items - gains + losses) * difference
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = items * (2 * share + difference * (1 - difference))
        return distance / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, distance)

    tiny = 1e-9
    low = brentq(lambda d: min(score(d), 1e6) - z, -1 + tiny, value - tiny) if value > -1 + 2 * tiny else -1.0
    high = brentq(lambda d: max(score(d), -1e6) + z, value + tiny, 1 - tiny) if value < 1 - 2 * tiny else 1.0
    return Difference(value=value, low=float(low), high=float(high))


def bootstrap(change: NDArray[np.float64], seed: int, confidence: float = CONFIDENCE) -> Difference:
    """BCa over items."""
    from scipy.stats import bootstrap as resampled

    value = float(change.mean())
    if len(change) < _LEAST_GRADED:
        return Difference(value=value, low=-1.0, high=1.0)
    if np.ptp(change) == 0:
        return Difference(value=value, low=value, high=value)
    found = resampled(
        (change,), np.mean, n_resamples=DRAWS, confidence_level=confidence, method="BCa", batch=256,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Difference(value=value, low=float(found.low), high=float(found.high))


def more_items(gains: int, losses: int, items: int, margin: float, confidence: float = CONFIDENCE) -> int | None:
    """Further items until one verdict or the other, if items go on to be gained and lost at the rates seen."""

    def decided(times: float) -> bool:
        found = tango(gains * times, losses * times, items * times, confidence)
        return found.low >= -margin or found.high < 0

    return _further(decided, items)


def _more_graded(found: Difference, items: int, margin: float) -> int | None:
    """Intervals shrink with the root of the number of items."""

    def decided(times: float) -> bool:
        root = math.sqrt(times)
        low, high = found.value - (found.value - found.low) / root, found.value + (found.high - found.value) / root
        return low >= -margin or high < 0

    return _further(decided, items)


def _further(decided: Callable[[float], bool], items: int) -> int | None:
    """The least multiple of the items that decides, by doubling and halving; monotone but for small numbers."""
    few, many = 1.0, 2.0
    while not decided(many):
        few, many = many, many * 2
        if many * items > MOST_ITEMS:
            return None
    while (many - few) * items > max(1.0, 0.01 * many * items):
        middle = (few + many) / 2
        few, many = (few, middle) if decided(middle) else (middle, many)
    return max(1, math.ceil(items * (many - 1)))
