"""Errors per group and overall, with and without the rows that the written rules exclude."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fwopt.score.rules import load_rules
from fwopt.score.run import METRICS
from fwopt.spec.base import SCHEMA_VERSION

BY = ("source", "model_class", "engine", "gpu")


def _group(frame: pd.DataFrame) -> dict[str, Any]:
    """Rows, and per metric: rows with a measurement, median and mean absolute relative error, median error (bias)."""
    out: dict[str, Any] = {"rows": len(frame)}
    for metric in METRICS:
        error = pd.to_numeric(frame[f"error_{metric}"], errors="coerce").dropna()
        out[metric] = (
            {
                "rows": len(error),
                "median_abs": float(error.abs().median()),
                "mean_abs": float(error.abs().mean()),
                "bias": float(error.median()),
                "inside_interval": _inside(frame, metric),
            }
            if len(error)
            else None
        )
    return out


def _inside(frame: pd.DataFrame, metric: str) -> float | None:
    """Share of measured rows that lie in their 80 % interval."""
    inside = frame[f"inside_{metric}"].dropna()
    return float(inside.astype(bool).mean()) if len(inside) else None


def summarize(scored: pd.DataFrame) -> dict[str, Any]:
    """The JSON of `fwopt score`."""
    good = scored[scored["status"] == "scored"]
    kept = good[good["excluded"] == ""]
    by = [name for name in BY if name in scored.columns]
    moe = good["moe"].astype(bool)
    reasons = scored.loc[scored["status"] != "scored", "reason"].value_counts()
    return {
        "schema_version": SCHEMA_VERSION,
        "rows": len(scored),
        "scored": len(good),
        "unscored": {str(reason): int(count) for reason, count in reasons.items()},
        "excluded": {
            rule.id: {"rows": int((good["excluded"] == rule.id).sum()), "reason": rule.reason}
            for rule in load_rules("exclusions")
            if not rule.only_fit
        },
        "all_rows": _family(good, moe),
        "without_excluded": _family(kept, moe[kept.index]),
        "groups": [
            {**dict(zip(by, key, strict=True)), "all_rows": _group(part), "without_excluded": _group(_kept(part))}
            for key, part in good.groupby(by, dropna=False)
        ],
    }


def _kept(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["excluded"] == ""]


def _family(frame: pd.DataFrame, moe: pd.Series[bool]) -> dict[str, Any]:
    return {"all": _group(frame), "dense": _group(frame[~moe]), "moe": _group(frame[moe])}
