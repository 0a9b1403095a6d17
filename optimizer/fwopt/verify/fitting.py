"""Few factors from measured runs: Gauss-Newton on log errors, drawn towards no change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fwopt.perf.grid import StepGrid
from fwopt.verify.metrics import THROUGHPUT, figures
from fwopt.verify.promise import Promise
from fwopt.workload.columns import Workload

NOISE = {"tpot": 0.03, "ttft": 0.08, "e2e": 0.05, THROUGHPUT: 0.05}
"""Relative error at which a figure counts once: about what repeats of one run differ by."""
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

    def predicted(self, theta: Floats) -> dict[str, float | None]:
        return figures(self.promise.records(self.workload, partial(adjusted, theta=theta)), self.promise.pairs)


def adjusted(grid: StepGrid, theta: Floats) -> StepGrid:
    return grid.scaled(*as_factors(theta))


def as_factors(theta: Floats) -> tuple[float, float, float]:
    """(decode, prefill, seconds added to a request's delay)."""
    return math.exp(theta[0]), math.exp(theta[1]), float(theta[2]) * DELAY_S


def fit(runs: Sequence[Observed]) -> Floats:
    """Log factors of decode and prefill steps, and the request delay in units of `DELAY_S`."""
    theta = np.zeros(3)
    prior = np.diag(1.0 / SPREAD**2)
    for _ in range(ROUNDS):
        base = _residuals(runs, theta)
        jacobian = np.column_stack([(_residuals(runs, theta + d) - base) / d.sum() for d in np.diag(STEP)])
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
    """ln(predicted / measured) in noises, of every figure that both have."""
    values = []
    for run in runs:
        predicted = run.predicted(theta)
        for name, measured in run.measured.items():
            p, noise = predicted.get(name), NOISE[name.partition(":")[0]]
            values.append(math.log(p / measured) / noise if p else 0.0)
    return np.asarray(values, dtype=np.float64)
