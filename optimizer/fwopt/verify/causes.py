"""Why a measured figure differs from the promised one: one circumstance after another is taken over from the
measurement into the simulation, and each is charged with what its change moves.

Order: when requests were really sent, what the prefix cache really held, how long steps really took (one factor, from
the mean TPOT). What is left is queueing and the HTTP front. Parts of ln(measured / promised) add up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fwopt.metrics.records import Records
from fwopt.metrics.summary import statistic
from fwopt.spec.verification import Cause
from fwopt.verify.metrics import figures
from fwopt.verify.promise import Cached, Promise, sent_at
from fwopt.workload.columns import Workload

FACTOR_LIMITS = 0.05, 20.0
"""Step times further off than this are no matter of a factor."""
STEPS = 24
"""Halvings of the factor's interval in log units: to a relative 1e-6."""

SAME = 1e-4
"""Relative difference of mean TPOT that needs no factor."""

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Explained:
    """Causes per metric, and the factor on step times that was found."""

    causes: dict[str, dict[Cause, float]]
    step_factor: float | None


def explain(
    promise: Promise, workload: Workload, measured: Records, sent_s: NDArray[np.float64], *, cached_known: bool
) -> Explained:
    """`workload` is what was scheduled, in the order of `measured`; `sent_s` on its clock, NaN where never sent."""
    base = promise.records(workload)
    moved, order = sent_at(workload, sent_s)
    stages: list[tuple[Cause, Figures]] = []
    if len(moved):
        late = (sent_s - measured.arrival_s)[order]  # where latencies count from the schedule, not from the sending
        observed = _part(measured, order)

        def simulate(factor: float = 1.0, cached: Cached | None = None) -> Records:
            return promise.as_seen(moved, late, lambda grid: grid.scaled(factor), cached)

        client = simulate()
        stages.append(("client", figures(client, promise.pairs)))
        cached = observed.cached_tokens if cached_known else None
        if cached_known:
            before, after = (figures(simulate(cached=c), promise.pairs) for c in (client.cached_tokens, cached))
            stages.append(("cache", _relative(stages[-1][1], after, before)))
        factor = step_factor(lambda f: simulate(f, cached), observed)
        if factor is not None:
            before, after = (figures(simulate(f, cached), promise.pairs) for f in (1.0, factor))
            stages.append(("step time", _relative(stages[-1][1], after, before)))
    else:
        factor = None
    start, end = figures(base, promise.pairs), figures(measured, promise.pairs)
    return Explained({name: _parts(name, start, stages, end) for name in end}, factor)


def step_factor(simulate: Callable[[float], Records], measured: Records) -> float | None:
    """Multiple of the step times at which the simulated mean TPOT is the measured one; None where there is none."""
    target = statistic(measured, "tpot", "mean")
    low, high = (math.log(limit) for limit in FACTOR_LIMITS)

    def tpot(log_factor: float) -> float:
        return statistic(simulate(math.exp(log_factor)), "tpot", "mean") or 0.0

    if target and math.isclose(tpot(0.0), target, rel_tol=SAME):
        return 1.0
    if not target or not tpot(low) < target < tpot(high):
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if tpot(middle) < target else (low, middle)
    return math.exp((low + high) / 2)


def _part(records: Records, order: NDArray[np.int64]) -> Records:
    per_request = (
        "arrival_s", "scheduled_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens", "cached_tokens",
        "status", "replica", "preemptions",
    )  # fmt: skip
    return replace(records, **{name: getattr(records, name)[order] for name in per_request})


def _relative(at: Figures, after: Figures, before: Figures) -> dict[str, float | None]:
    """`at`, moved by the ratio that a change makes in a simulation of its own."""
    return {
        name: value * after_value / before_value
        if value is not None and (after_value := after[name]) and (before_value := before[name])
        else value
        for name, value in at.items()
    }


def _parts(name: str, start: Figures, stages: list[tuple[Cause, Figures]], end: Figures) -> dict[Cause, float]:
    """Logarithmic shares of one metric; empty where promise or measurement has no value."""
    first, last = start[name], end[name]
    if not first or not last:
        return {}
    shares: dict[Cause, float] = {}
    before = first
    for cause, figure in stages:
        value = figure[name]
        shares[cause] = math.log(value / before) if value else 0.0
        before = value or before
    return shares | {"rest": math.log(last / before)}
