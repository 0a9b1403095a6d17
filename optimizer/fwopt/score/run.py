"""Score a table: one row in, one row out, in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from fwopt.perf.calibration import Calibration, Metric, load_calibration
from fwopt.score.case import Case, Unscored, read_case
from fwopt.score.fit import WORKERS, Observation, log_errors
from fwopt.score.predict import CostModels, Prediction, predict
from fwopt.score.rules import excluded_by
from fwopt.score.table import Row, number, records, text

METRICS: tuple[Metric, ...] = ("throughput", "ttft", "tpot")
PREDICTED: dict[str, tuple[Metric, Callable[[Prediction], float | None]]] = {
    "pred_ttft_mean_ms": ("ttft", lambda p: 1e3 * p.ttft_mean_s),
    "pred_ttft_p50_ms": ("ttft", lambda p: 1e3 * p.ttft_p50_s),
    "pred_tpot_mean_ms": ("tpot", lambda p: None if p.tpot_mean_s is None else 1e3 * p.tpot_mean_s),
    "pred_output_tok_s": ("throughput", lambda p: p.output_tokens_per_s),
}


def observe(row: Row, case: Case) -> Observation:
    """What was measured. A single figure of unstated kind in a p50 column behaves like a mean (docs/score.md)."""
    unstated = "without saying" in text(row, "stat_note")
    mean, median = number(row, "ttft_mean_ms"), number(row, "ttft_p50_ms")
    ttft = mean if mean is not None else median
    tpot = number(row, "tpot_mean_ms")
    tpot = tpot if tpot is not None else number(row, "tpot_p50_ms")
    return Observation(
        case=case,
        ttft_s=ttft / 1e3 if ttft else None,
        ttft_is_median=mean is None and not unstated,
        tpot_s=tpot / 1e3 if tpot else None,
        throughput=number(row, "output_tok_s"),
    )


def score(
    table: pd.DataFrame, calibrations: dict[str, Calibration] | None = None, off: frozenset[str] = frozenset()
) -> pd.DataFrame:
    """The table with predictions, intervals, provenance, status and reason; `error_*` are relative errors.

    `calibrations` by engine; None takes the shipped ones. `off`: effects to leave out.
    """
    models = {engine: CostModels(calibration, off) for engine, calibration in (calibrations or {}).items()}
    shipped = CostModels(None, off)
    rows = records(table)

    def one(row: Row) -> dict[str, Any]:
        case = read_case(row)
        if isinstance(case, Unscored):
            return {"status": "unscored", "reason": case.reason}
        name = case.engine.name
        found = predict(case, models.get(name) or shipped)
        if isinstance(found, Unscored):
            return {"status": "unscored", "reason": found.reason}
        used = (calibrations or {}).get(name) or load_calibration(name)
        return _scored(row, case, found, used)

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(one, rows))
    added = pd.DataFrame(results, index=table.index)
    for column in _columns():
        if column not in added:
            added[column] = pd.NA
    return table.join(added[_columns()])


def _compared() -> list[str]:
    return [f"{kind}_{metric}" for kind in ("error", "inside") for metric in METRICS]


def _columns() -> list[str]:
    predicted = [f"{name}{suffix}" for name in PREDICTED for suffix in ("", "_lo", "_hi")]
    return [
        *predicted,
        "provenance",
        "status",
        "reason",
        "moe",
        "excluded",
        *(f"error_{m}" for m in METRICS),
        *(f"inside_{m}" for m in METRICS),
    ]


def _scored(row: Row, case: Case, found: Prediction, calibration: Calibration) -> dict[str, Any]:
    out: dict[str, Any] = {"status": "scored", "reason": "", "moe": case.model.is_moe}
    for name, (metric, value) in PREDICTED.items():
        out[name] = value(found)
        interval = calibration.interval(metric, case.model.is_moe)
        if interval is not None and out[name] is not None:
            out[f"{name}_lo"], out[f"{name}_hi"] = out[name] * interval.low, out[name] * interval.high
    shares = found.provenance.model_dump()
    out["provenance"] = " ".join(f"{kind}={share:.2f}" for kind, share in shares.items() if share >= 0.005)
    rule = excluded_by(row)
    out["excluded"] = rule.id if rule else ""
    for measured, error in log_errors(observe(row, case), found).items():
        out[f"error_{measured}"] = math.expm1(error)
        interval = calibration.interval(measured, case.model.is_moe)
        if interval is not None:
            out[f"inside_{measured}"] = interval.low <= math.exp(-error) <= interval.high
    return out
