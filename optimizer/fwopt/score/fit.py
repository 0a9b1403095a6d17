"""Fit the residual: few factors, drawn towards one, on log errors that cannot be dominated by outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.perf.calibration import Calibration, Metric
from fwopt.perf.priors import load_overheads
from fwopt.score.case import Case, Unscored
from fwopt.score.predict import CostModels, Prediction, predict

NOISE: dict[Metric, float] = {"ttft": 0.12, "tpot": 0.05, "throughput": 0.07}
"""Relative error at which a row counts once: about what repeats and unstated settings leave."""
HUBER = 2.0
"""Residuals beyond this many noises pull with constant force."""
BALANCE = 0.75
"""Between one (every row alike) and zero (every model alike)."""
STEP = 0.05
"""Step of the numeric derivative, in log units."""
WORKERS = 2

SPREADS = {
    "gemm/bf16": 0.06, "gemm/fp8": 0.06, "gemm/fp8_block": 0.1, "moe/bf16": 0.3, "moe/fp8_block": 0.3, "moe/mxfp4": 0.3,
    "moe/w4a16": 0.3, "attention_decode": 0.1, "attention_prefill": 0.1,
    "mla_decode": 0.2, "mla_prefill": 0.2, "linear_attention": 0.2, "comm": 0.15, "elementwise": 0.2,
}  # fmt: skip
"""How far a factor is expected from one, in log units: the strength of the pull. Dense GEMMs are a library's own
kernels, timed as they are served; expert kernels depend on routing and on the engine's version."""
FAMILIES = {
    f"{family}{regime}": spread
    for family, spread in SPREADS.items()
    for regime in (("/small", "/large") if "/" in family else ("",))
}
LIMITS = (math.log(0.6), math.log(2.5))
"""A factor beyond these would be a fault of the model, not its residual."""
OVERHEADS = {
    "serial_s": 0.5, "sequence_serial_s": 0.7, "prefill_step_s": 0.4, "special_prefill_step_s": 1.5, "request_s": 0.5,
    "front_s": 0.7, "chunk_s": 0.7,
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


def log_errors(observation: Observation, prediction: Prediction) -> dict[Metric, float]:
    """Metric -> log(predicted / measured)."""
    pairs: dict[Metric, tuple[float | None, float | None]] = {
        "ttft": (prediction.ttft_p50_s if observation.ttft_is_median else prediction.ttft_mean_s, observation.ttft_s),
        "tpot": (prediction.tpot_mean_s, observation.tpot_s),
        "throughput": (prediction.output_tokens_per_s, observation.throughput),
    }
    return {metric: math.log(p / m) for metric, (p, m) in pairs.items() if p and m}


_NEAR_START: dict[tuple[str, bytes, str], Prediction | Unscored] = {}
"""Predictions with at most one factor off its stated value: they depend on no measurement, so folds may share them."""


class Fit:
    """Gauss-Newton on one engine's rows."""

    def __init__(self, engine: str, rows: Sequence[Observation]) -> None:
        self.engine, self.rows = engine, list(rows)
        stated = load_overheads(engine)
        self.names = [*FAMILIES, *OVERHEADS]
        self.start = {name: float(getattr(stated, name)) for name in OVERHEADS}
        self.spread = np.array([*FAMILIES.values(), *OVERHEADS.values()])

    def calibration(self, theta: NDArray[np.float64], version: str = "fitting", fitted_on: str = "") -> Calibration:
        """Parameters (log factors) as a calibration; what no row depends on stays at one and is left out."""
        values = dict(zip(self.names, np.exp(theta), strict=True))
        factors = {n: round(float(values[n]), 4) for n in FAMILIES if abs(values[n] - 1) > 1e-4}
        overheads = {n: float(f"{self.start[n] * values[n]:.4g}") for n in OVERHEADS}
        return Calibration(
            version=version, engine=self.engine, fitted_on=fitted_on, factors=factors, overheads=overheads
        )

    def errors(self, theta: NDArray[np.float64], rows: Sequence[Observation]) -> list[dict[Metric, float]]:
        """Log errors of every row; empty where the row cannot be predicted."""
        models = CostModels(self.calibration(theta))
        near_start = np.count_nonzero(theta) <= 1  # asked for again by every part of a cross-validation
        at = (self.engine, theta.tobytes())

        def one(row: Observation) -> dict[Metric, float]:
            key = (*at, row.case.key)
            found = _NEAR_START.get(key)
            if found is None:
                found = predict(row.case, models)
                if near_start:
                    _NEAR_START[key] = found
            return log_errors(row, found) if isinstance(found, Prediction) else {}

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(one, rows))

    def run(self, rows: Sequence[Observation], rounds: int = 3) -> NDArray[np.float64]:
        """Fit on `rows` alone, from the stated values."""
        theta = np.zeros(len(self.names))
        active = list(range(len(self.names)))
        for _ in range(rounds):
            theta, active = self._round(theta, rows, active)
        return theta

    def _round(
        self, theta: NDArray[np.float64], rows: Sequence[Observation], active: list[int]
    ) -> tuple[NDArray[np.float64], list[int]]:
        """One step, and the parameters on which any of the rows depends."""
        base = self.errors(theta, rows)
        keys = [(i, metric) for i, found in enumerate(base) for metric in found]
        residual = np.array([base[i][metric] / NOISE[metric] for i, metric in keys])
        jacobian = np.zeros((len(keys), len(theta)))
        for j in active:
            moved = theta.copy()
            moved[j] += STEP
            there = self.errors(moved, rows)
            value = np.array([there[i].get(metric, math.nan) / NOISE[metric] for i, metric in keys])
            jacobian[:, j] = np.nan_to_num((value - residual) / STEP)
        # a row at its KV limit jumps when a block more or less fits: such a derivative says nothing
        jacobian[np.abs(jacobian).max(axis=1) * STEP > 3.0 / min(NOISE.values()) * STEP] = 0.0
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9)) * _balance(rows)[[i for i, _ in keys]]
        prior = np.diag(1.0 / self.spread**2)
        lhs = jacobian.T @ (weight[:, None] * jacobian) + prior
        rhs = jacobian.T @ (weight * residual) + prior @ theta
        step = np.linalg.solve(lhs, rhs)
        acting = [j for j in active if jacobian[:, j].any()]
        found = theta - np.clip(step, -1.0, 1.0)
        families = len(FAMILIES)
        found[:families] = np.clip(found[:families], *LIMITS)
        return np.asarray(found, dtype=np.float64), acting


def _balance(rows: Sequence[Observation]) -> NDArray[np.float64]:
    """A model with n rows counts as n to the BALANCE, so that a long sweep of one does not drown the others."""
    names = [f"{row.case.model.name} {row.case.candidate.quantization.kind}" for row in rows]
    weight = np.array([names.count(name) ** (BALANCE - 1) for name in names])
    return np.asarray(weight / weight.mean(), dtype=np.float64)
