"""The fitted residual on top of physics: a few factors per kernel family (`profiles/calibration/<engine>.yaml`).

Operator tables time one kernel alone, in a burst. A serving engine runs them back to back for minutes, at sustained
clocks, another version, with host work in between. Factors multiply operator times; overheads replace the engine's
stated host times. Both come from `fwopt score TABLE --refit`, and from nowhere else.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from fwopt.paths import data_folder
from fwopt.perf.grid import Floats
from fwopt.perf.priors import load_file
from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.provenance import Interval as Interval

Metric = Literal["ttft", "tpot", "throughput"]

SMALL_TOKENS, LARGE_TOKENS = 64.0, 1024.0
"""A kernel family has one factor up to the first and one from the second token count on, log-linear in between:
below, weights are streamed; above, the matrix units are busy."""

SAME_KERNELS = {
    "gemm/int8": "gemm/fp8",
    "gemm/w4a16": "gemm/bf16",
    "moe/fp8": "moe/fp8_block",
    "moe/int8": "moe/fp8_block",
}
"""Kernels without measurements of their own take the factor of those whose utilisation stands in for them."""


class Calibration(Frozen):
    """One engine's fitted residual."""

    schema_version: int = SCHEMA_VERSION
    version: str = "none"
    engine: str
    fitted_on: str = "nothing: every factor is one"
    factors: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Kernel family -> measured time over table time. `gemm/fp8/large`, `attention_decode`, `comm` …"""
    overheads: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Fields of `Overheads` -> fitted seconds."""
    intervals: tuple[Interval, ...] = ()

    def factor(self, family: str) -> float:
        """For families without regimes."""
        return self.factors.get(family, 1.0)

    def factors_over(self, family: str, dtype: str, tokens: Floats) -> Floats:
        """For families with a small and a large regime."""
        base = SAME_KERNELS.get(f"{family}/{dtype}", f"{family}/{dtype}")
        small, large = self.factor(f"{base}/small"), self.factor(f"{base}/large")
        span = np.log(LARGE_TOKENS / SMALL_TOKENS)
        weight = np.clip(np.log(np.maximum(tokens, 1.0) / SMALL_TOKENS) / span, 0.0, 1.0)
        return np.asarray(small ** (1 - weight) * large**weight, dtype=np.float64)

    def interval(self, metric: Metric, moe: bool) -> Interval | None:
        """The narrowest group that was measured often enough; None where nothing was."""
        for group in ("moe" if moe else "dense", "all"):
            for interval in self.intervals:
                if interval.metric == metric and interval.group == group:
                    return interval
        return None

    def intervals_for(self, moe: bool) -> tuple[Interval, ...]:
        """One interval a metric, where there is one."""
        found = (self.interval(metric, moe) for metric in get_args(Metric))
        return tuple(interval for interval in found if interval is not None)


@functools.cache
def load_calibration(engine: str, folder: Path | None = None) -> Calibration:
    """The shipped calibration of an engine; without a file every factor is one."""
    path = (folder or data_folder("profiles") / "calibration") / f"{engine}.yaml"
    return load_file(path, Calibration) if path.is_file() else Calibration(engine=engine)
