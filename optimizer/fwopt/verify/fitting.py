"""Few factors from measured runs: Gauss-Newton on log errors, drawn towards no change.

A queue multiplies errors of step times: where a server is nearly full, steps 5 % longer may double TTFT p90. Machines
drift by as much within minutes, so a figure counts the less the more it would move by that; and first tokens of
requests that nobody hindered, in which nothing is multiplied, count as a figure of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fwopt.metrics.records import Records
from fwopt.perf.grid import StepGrid
from fwopt.verify.metrics import THROUGHPUT, figures
from fwopt.verify.promise import Cached, Promise
from fwopt.workload.columns import Workload

NOISE = {"tpot": 0.03, "ttft": 0.08, "e2e": 0.05, THROUGHPUT: 0.05}
"""Relative error at which a figure counts once: about what repeats of one run differ by."""
ALONE_NOISE = 0.03
"""The same of the first tokens of unhindered requests, in the median."""
LEAST_ALONE = 10
"""Fewer unhindered requests say nothing."""
DRIFT = 0.05
"""By how much step times of one machine differ between minutes (benchmarks/live.md)."""
HUBER = 2.0
"""Residuals beyond this many noises pull with constant force."""
SPREAD = np.array([0.3, 0.3, 1.0])
"""How far parameters are expected from no change: log factors, and the request delay in units of `DELAY_S`."""
DELAY_S = 0.05
STEP = np.array([0.02, 0.02, 0.1])
"""Steps of the numeric derivative."""
ROUNDS = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observed:
    """One run: its workload as it was sent, and what was measured."""

    promise: Promise
    workload: Workload
    measured: dict[str, float]
    first_s: Floats
    """(n,) seconds to the first token of each request of the workload"""
    alone: NDArray[np.bool_]
    """(n,) whether it was `unhindered`"""
    cached: Cached | None = None
    """(n,) prompt tokens that the server says it found cached; None: it does not say"""

    def residuals(self, theta: Floats) -> list[float]:
        """ln(predicted / measured) in noises, of every figure that both have."""
        records = self._records(theta)
        predicted = figures(records, self.promise.pairs)
        found = []
        for name, measured in self.measured.items():
            p, noise = predicted.get(name), NOISE[name.partition(":")[0]]
            found.append(math.log(p / measured) / noise if p else 0.0)
        if self.alone.sum() >= LEAST_ALONE:
            ratio = (records.first_token_s - records.arrival_s)[self.alone] / self.first_s[self.alone]
            found.append(float(np.median(np.log(ratio))) / ALONE_NOISE)
        return found

    def predicted(self, theta: Floats) -> dict[str, float | None]:
        return figures(self._records(theta), self.promise.pairs)

    def _records(self, theta: Floats) -> Records:
        return self.promise.records(self.workload, partial(adjusted, theta=theta), self.cached)


def adjusted(grid: StepGrid, theta: Floats) -> StepGrid:
    return grid.scaled(*as_factors(theta))


def as_factors(theta: Floats) -> tuple[float, float, float]:
    """(decode, prefill, seconds added to a request's delay)."""
    return math.exp(theta[0]), math.exp(theta[1]), float(theta[2]) * DELAY_S


def unhindered(records: Records, sequences: int) -> NDArray[np.bool_]:
    """Requests whose prompts were computed while no other prompt was, nor waited, on a server with room for them in its
    `sequences`: they waited for nobody."""
    order = np.argsort(records.arrival_s, kind="stable")
    arrival = records.arrival_s[order]
    first, finish = (np.nan_to_num(x[order], nan=np.inf) for x in (records.first_token_s, records.finish_s))
    others = np.concatenate(([-np.inf], np.maximum.accumulate(first)[:-1]))
    following = np.concatenate((arrival[1:], [np.inf]))
    in_flight = np.arange(len(arrival)) - np.searchsorted(np.sort(finish), arrival, side="right")
    found = np.zeros(len(arrival), dtype=np.bool_)
    found[order] = (others <= arrival) & (first <= following) & np.isfinite(first) & (in_flight < sequences)
    return found


def fit(runs: Sequence[Observed]) -> Floats:
    """Log factors of decode and prefill steps, and the request delay in units of `DELAY_S`."""
    theta = np.zeros(3)
    prior = np.diag(1.0 / SPREAD**2)
    for _ in range(ROUNDS):
        base = _residuals(runs, theta)
        sides = [(_residuals(runs, theta + d), _residuals(runs, theta - d), 2 * d.sum()) for d in np.diag(STEP)]
        jacobian = np.column_stack([(up - down) / width for up, down, width in sides])
        calm = 1.0 / np.hypot(1.0, DRIFT * (jacobian[:, 0] + jacobian[:, 1]))
        base, jacobian = base * calm, jacobian * calm[:, None]
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(base), 1e-9))
        lhs = jacobian.T @ (weight[:, None] * jacobian) + prior
        rhs = jacobian.T @ (weight * base) + prior @ theta
        theta = theta - np.clip(np.linalg.solve(lhs, rhs), -0.7, 0.7)
    return theta


def errors(runs: Sequence[Observed], theta: Floats) -> dict[str, float]:
    """Metric -> mean absolute relative error over the runs that have it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        predicted = run.predicted(theta)
        for name, value in run.measured.items():
            if (p := predicted.get(name)) is not None:
                found.setdefault(name, []).append(abs(p / value - 1))
    return {name: round(float(np.mean(values)), 5) for name, values in found.items()}


def _residuals(runs: Sequence[Observed], theta: Floats) -> Floats:
    return np.asarray([value for run in runs for value in run.residuals(theta)], dtype=np.float64)
