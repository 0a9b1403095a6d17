"""Fit the residual: few factors, drawn towards one, on log errors that cannot be dominated by outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.perf.calibration import Calibration
from fwopt.perf.priors import load_overheads
from fwopt.score.case import Case
from fwopt.score.predict import CostModels, Prediction, predict

NOISE = {"ttft": 0.12, "tpot": 0.05, "throughput": 0.07}
"""Relative error at which a row counts once: about what repeats and unstated settings leave."""
HUBER = 2.0
"""Residuals beyond this many noises pull with constant force."""
STEP = 0.05
"""Step of the numeric derivative, in log units."""
WORKERS = 2

FAMILIES = (
    "gemm/bf16/small", "gemm/bf16/large", "gemm/fp8/small", "gemm/fp8/large", "gemm/fp8_block/small",
    "gemm/fp8_block/large", "moe/bf16/small", "moe/bf16/large", "moe/fp8_block/small", "moe/fp8_block/large",
    "moe/mxfp4/small", "moe/mxfp4/large", "attention_decode", "attention_prefill", "mla", "comm", "elementwise",
)  # fmt: skip
FAMILY_SPREAD = 0.15
"""How far a factor is expected from one, in log units: the strength of the pull."""
OVERHEADS = {
    "serial_s": 0.5, "sequence_serial_s": 0.7, "prefill_step_s": 1.0, "mla_prefill_step_s": 1.5, "request_s": 0.5
}  # fmt: skip
"""Host time -> how far it is expected from its stated value, in log units."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A scorable row with what was measured; seconds and tokens per second, None where the table has nothing."""

    case: Case
    ttft_s: float | None
    ttft_is_median: bool
    tpot_s: float | None
    throughput: float | None


def log_errors(observation: Observation, prediction: Prediction) -> dict[str, float]:
    """Metric -> log(predicted / measured)."""
    pairs = {
        "ttft": (prediction.ttft_p50_s if observation.ttft_is_median else prediction.ttft_mean_s, observation.ttft_s),
        "tpot": (prediction.tpot_mean_s, observation.tpot_s),
        "throughput": (prediction.output_tokens_per_s, observation.throughput),
    }
    return {metric: math.log(p / m) for metric, (p, m) in pairs.items() if p and m}


class Fit:
    """Gauss-Newton on one engine's rows."""

    def __init__(self, engine: str, rows: Sequence[Observation]) -> None:
        self.engine, self.rows = engine, list(rows)
        stated = load_overheads(engine)
        self.names = [*FAMILIES, *OVERHEADS]
        self.start = {name: float(getattr(stated, name)) for name in OVERHEADS}
        self.spread = np.array([FAMILY_SPREAD] * len(FAMILIES) + list(OVERHEADS.values()))

    def calibration(self, theta: NDArray[np.float64], version: str = "fitting", fitted_on: str = "") -> Calibration:
        """Parameters (log factors) as a calibration; what no row depends on stays at one and is left out."""
        values = dict(zip(self.names, np.exp(theta), strict=True))
        factors = {n: round(float(values[n]), 4) for n in FAMILIES if abs(values[n] - 1) > 1e-4}
        overheads = {n: float(f"{self.start[n] * values[n]:.4g}") for n in OVERHEADS}
        return Calibration(
            version=version, engine=self.engine, fitted_on=fitted_on, factors=factors, overheads=overheads
        )

    def errors(self, theta: NDArray[np.float64], rows: Sequence[Observation]) -> list[dict[str, float]]:
        """Log errors of every row; empty where the row cannot be predicted."""
        models = CostModels(self.calibration(theta))

        def one(row: Observation) -> dict[str, float]:
            found = predict(row.case, models)
            return log_errors(row, found) if isinstance(found, Prediction) else {}

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(one, rows))

    def run(self, rows: Sequence[Observation], rounds: int = 2) -> NDArray[np.float64]:
        """Fit on `rows` alone, from the stated values."""
        theta = np.zeros(len(self.names))
        for _ in range(rounds):
            theta = self._round(theta, rows)
        return theta

    def _round(self, theta: NDArray[np.float64], rows: Sequence[Observation]) -> NDArray[np.float64]:
        base = self.errors(theta, rows)
        keys = [(i, metric) for i, found in enumerate(base) for metric in found]
        residual = np.array([base[i][metric] / NOISE[metric] for i, metric in keys])
        jacobian = np.zeros((len(keys), len(theta)))
        for j in range(len(theta)):
            moved = theta.copy()
            moved[j] += STEP
            there = self.errors(moved, rows)
            value = np.array([there[i].get(metric, math.nan) / NOISE[metric] for i, metric in keys])
            jacobian[:, j] = np.nan_to_num((value - residual) / STEP)
        # a row at its KV limit jumps when a block more or less fits: such a derivative says nothing
        jacobian[np.abs(jacobian).max(axis=1) * STEP > 3.0 / min(NOISE.values()) * STEP] = 0.0
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9))
        prior = np.diag(1.0 / self.spread**2)
        lhs = jacobian.T @ (weight[:, None] * jacobian) + prior
        rhs = jacobian.T @ (weight * residual) + prior @ theta
        step = np.linalg.solve(lhs, rhs)
        return np.asarray(theta - np.clip(step, -0.7, 0.7), dtype=np.float64)
