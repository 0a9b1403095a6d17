"""The whole of `fwopt kernels tune`: demand -> buckets -> compiled -> searched -> what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fwopt.tuning import device as devices
from fwopt.tuning.buckets import Bucket, place
from fwopt.tuning.device import Bench, Candidates, Tell
from fwopt.tuning.family import TORCH, Demand, Family, Row, shape_of
from fwopt.tuning.operators import load_operator
from fwopt.tuning.search import Ask, FamilySearch, Measured, run
from fwopt.tuning.vllm_baseline import own_choices

if TYPE_CHECKING:
    from fwopt.spec.hardware import DeviceSpec
    from fwopt_kernels.contract import Variant
    from fwopt_kernels.elsewhere import Elsewhere
    from fwopt_kernels.host import Host

LAUNCH_S = 2e-6
"""Added to every floor: what a kernel takes that has nothing to do. Keeps tiny shapes from looking free."""
COMPILING, SEARCHING = 0.4, 0.8
"""Shares of the budget after which compiling, and searching, end; the rest is for the finals."""


@dataclass(frozen=True, slots=True)
class Found:
    """One bucket: the default and the best, None where none could be measured."""

    point: tuple[int, ...]
    calls: float
    """How often the workload makes calls of this bucket."""
    default_s: float | None
    best_s: float | None
    variant: str | None
    measured: int
    """Variants that were measured there."""

    @property
    def saved_s(self) -> float:
        """Of the whole workload. Where the default does not run there is nothing to save from."""
        return 0.0 if self.default_s is None or self.best_s is None else self.calls * (self.default_s - self.best_s)

    @property
    def time_s(self) -> float:
        return self.calls * (self.best_s or self.default_s or 0.0)


@dataclass(frozen=True, slots=True)
class FoundFamily:
    """One operator as one part of the model calls it."""

    family: Family
    variants: int
    rejected: tuple[tuple[str, str], ...]
    """(variant, reason): ahead of time, or on the device"""
    left_out: int
    buckets: tuple[Found, ...]


@dataclass(slots=True)
class Outcome:
    """Everything that one run of the tuner found."""

    host: Host
    families: list[FoundFamily]
    rows: dict[str, list[Row]]
    complete: bool
    """False: the budget ended the search."""
    measurements: int
    spent_s: float


@dataclass(slots=True)
class _Part:
    """One family while it is searched."""

    demand: Demand
    buckets: list[Bucket]
    candidates: Candidates
    calls: np.ndarray
    search: FamilySearch = field(init=False)


def tune(
    demands: list[Demand], device: DeviceSpec, host: Host, *, budget_s: float, seed: int, most: int, tell: Tell,
    elsewhere: Elsewhere | None = None,
) -> Outcome:  # fmt: skip
    """`device`: whose catalogue figures the floors are computed from. `most`: buckets of a dimension. `elsewhere`:
    the Python to time with."""
    from fwopt_kernels.timing import bench

    started = time.monotonic()

    def within(share: float) -> Callable[[], bool]:
        return lambda: time.monotonic() - started < share * budget_s

    wanted = [(d.family.operator, d.family.format) for d in demands]
    compiled = devices.candidates(wanted, host, time_left=within(COMPILING), tell=tell)
    parts = [
        _part(d, device, compiled[key], seed, most, host, elsewhere) for d, key in zip(demands, wanted, strict=True)
        if key in compiled and compiled[key].variants
    ]  # fmt: skip
    measuring = Bench(host, seed, bench(elsewhere=elsewhere))
    try:
        complete = run(
            [part.search for part in parts], [_ask(part, measuring, tell) for part in parts], within(SEARCHING)
        )
    finally:
        measuring.child.close()
    families = [_found(part) for part in parts]
    rows: dict[str, list[Row]] = {}
    for part in parts:
        rows.setdefault(part.demand.family.operator, []).extend(_rows(part, measuring))
    return Outcome(
        host, families, {name: found for name, found in rows.items() if found}, complete, measuring.measurements,
        time.monotonic() - started,
    )  # fmt: skip


def floors(demand: Demand, points: list[tuple[int, ...]], device: DeviceSpec) -> np.ndarray:
    """(len(points),) seconds: bytes and arithmetic at the device's rates, and a launch."""
    operator = load_operator(demand.family.operator)
    rate = device.bf16_flops
    if "fp8" in demand.family.format and device.fp8_flops:
        rate = device.fp8_flops
    work = [
        operator.work(demand.family.format, dict(shape_of(demand.family, point, operator.dimensions)))
        for point in points
    ]
    return np.asarray([LAUNCH_S + max(w.bytes / device.bandwidth_bytes_per_s, w.flops / rate) for w in work])


def _part(
    demand: Demand, device: DeviceSpec, candidates: Candidates, seed: int, most: int, host: Host,
    elsewhere: Elsewhere | None,
) -> _Part:  # fmt: skip
    every = [tuple(int(x) for x in point) for point in demand.points]
    weights = demand.calls * floors(demand, every, device)
    buckets = place(demand.points, weights, most=most)
    calls = np.asarray([demand.calls[bucket.members].sum() for bucket in buckets])
    points, own = [bucket.point for bucket in buckets], None
    if elsewhere is not None and host.arch is not None:
        own = own_choices(demand.family, points, host.name, elsewhere)
        candidates = candidates.with_all(own)
    part = _Part(demand, buckets, candidates, calls)
    part.search = FamilySearch(
        features=candidates.features,
        places=np.log2(np.asarray([bucket.point for bucket in buckets], dtype=np.float64)),
        floors_s=floors(demand, points, device),
        calls=calls,
        defaults=_defaults(demand.family, points, candidates, own),
        suits=_suits(demand.family, points, candidates),
        seed=seed,
    )
    return part


def _defaults(
    family: Family, points: list[tuple[int, ...]], candidates: Candidates, own: list[Variant] | None
) -> tuple[int, ...]:
    """Each bucket's own, or the first where the device cannot run that. `own`: what an engine takes by itself."""
    operator = load_operator(family.operator)
    space = operator.space(family.format)
    wanted = own or [space.default_for(dict(shape_of(family, point, operator.dimensions))) for point in points]
    known = {variant: at for at, variant in enumerate(candidates.variants)}
    return tuple(known.get(variant, 0) for variant in wanted)


def _suits(family: Family, points: list[tuple[int, ...]], candidates: Candidates) -> np.ndarray:
    """(B, V) what the operator's space says; torch's fallback suits everywhere."""
    operator = load_operator(family.operator)
    space = operator.space(family.format)
    shapes = [dict(shape_of(family, point, operator.dimensions)) for point in points]
    return np.asarray([[v is None or space.suits(v, shape) for v in candidates.variants] for shape in shapes])


def _ask(part: _Part, measuring: Bench, tell: Tell) -> Ask:
    def ask(bucket: int, variant: int, effort_s: float) -> Measured | str:
        tell(f"timing {part.demand.family.label}", measuring.measurements, 0)
        return measuring.time(
            part.demand.family, part.buckets[bucket].point, part.candidates.variants[variant], effort_s
        )

    return ask


def _found(part: _Part) -> FoundFamily:
    search = part.search
    buckets = []
    for b, bucket in enumerate(part.buckets):
        best, first = search.winner(b), search.default(b)
        default = search.seen.get((b, first))
        at = None if best is None else part.candidates.variants[best]
        buckets.append(
            Found(
                point=bucket.point,
                calls=float(part.calls[b]),
                default_s=None if default is None or first in search.refused else default.seconds,
                best_s=None if best is None else search.seen[b, best].seconds,
                variant=None if best is None else name_of(at),
                measured=sum(1 for key in search.seen if key[0] == b),
            )
        )
    refused = [(name_of(part.candidates.variants[v]), why) for v, why in search.refused.items()]
    total = len(part.candidates.variants) + len(part.candidates.rejected) + part.candidates.left_out
    return FoundFamily(
        part.demand.family, total, (*part.candidates.rejected, *refused), part.candidates.left_out, tuple(buckets)
    )


def _rows(part: _Part, measuring: Bench) -> list[Row]:
    family, search, rows = part.demand.family, part.search, []
    for b, v in sorted(key for key in search.seen if key[1] not in search.refused):
        variant: Variant | None = part.candidates.variants[v]
        shape = measuring.question(family, part.buckets[b].point, variant, 0.0).shape
        key: tuple[Any, ...] = (family.operator, family.format, shape, variant)
        timing = measuring.timings[key]
        rows.append(
            Row(
                family.format, shape, name_of(variant), v == search.default(b), v == search.winner(b),
                float(part.calls[b]), timing.p20_s, timing.p50_s, timing.p80_s, timing.samples,
            )
        )  # fmt: skip
    return rows


def name_of(variant: Variant | None) -> str:
    return TORCH if variant is None else variant.id
