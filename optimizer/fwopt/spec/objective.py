"""What is wanted: limits on any metric at any quantile, and what to make best. One grammar for the
command line and `fwopt.yaml`; every metric is defined in docs/metrics.md."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveFloat

from fwopt.errors import InputError
from fwopt.spec.base import Frozen

LatencyMetric = Literal["ttft", "tpot", "itl", "e2e", "queue"]
GoalMetric = Literal["cost", "gpus", "throughput", "goodput", "ttft", "tpot", "itl", "e2e", "kl", "top1"]
QUALITY_METRICS = ("kl", "top1")
_MAXIMIZED = ("throughput", "goodput", "top1")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_SLO = re.compile(r"^\s*([a-z0-9]+)\s*(?::\s*(p\d+(?:\.\d+)?|mean))?\s*(<=?|>=?)\s*([0-9.eE+-]+)\s*(us|ms|s)?\s*$")
_STATISTIC = re.compile(r"^(p\d+(?:\.\d+)?|mean)$")


def parse_statistic(text: str) -> float | Literal["mean"]:
    """`p99` -> 0.99, `p99.9` -> 0.999, `mean` -> `"mean"`."""
    if not _STATISTIC.match(text) or (text != "mean" and not 0 < float(text[1:]) < 100):
        raise InputError(f"statistic must be mean or p1..p99.99, got '{text}'")
    return "mean" if text == "mean" else round(float(text[1:]) / 100, 8)


def format_statistic(statistic: float | Literal["mean"]) -> str:
    return "mean" if statistic == "mean" else f"p{statistic * 100:g}"


class Slo(Frozen):
    """A limit a deployment must keep, for example `ttft:p99<2s`."""

    metric: LatencyMetric
    statistic: Annotated[float, Field(gt=0, lt=1)] | Literal["mean"]
    limit_s: PositiveFloat

    @classmethod
    def parse(cls, text: str) -> Self:
        example = "write for example 'ttft:p99<2s', 'tpot:p95<50ms' or 'e2e:mean<10s'"
        found = _SLO.match(text)
        if found is None:
            raise InputError(f"SLO '{text}' is not METRIC:STATISTIC<LIMIT; {example}")
        metric, statistic, comparison, number, unit = found.groups()
        if metric not in get_args(LatencyMetric):
            raise InputError(f"SLO '{text}': metric must be one of {', '.join(get_args(LatencyMetric))}; {example}")
        if statistic is None:
            raise InputError(f"SLO '{text}' names no quantile; {example}")
        if not comparison.startswith("<"):
            raise InputError(f"SLO '{text}': a latency limit is an upper limit, use '<'; {example}")
        if unit is None:
            raise InputError(f"SLO '{text}': the limit needs a unit (s, ms or us); {example}")
        try:
            limit_s = float(number) * _SECONDS[unit]
        except ValueError:
            raise InputError(f"SLO '{text}': '{number}' is not a number; {example}") from None
        if not 0 < limit_s < float("inf"):
            raise InputError(f"SLO '{text}': the limit must be above zero and finite; {example}")
        return cls(metric=metric, statistic=parse_statistic(statistic), limit_s=limit_s)

    def __str__(self) -> str:
        limit = f"{self.limit_s * 1e3:g}ms" if self.limit_s < 1 else f"{self.limit_s:g}s"
        return f"{self.metric}:{format_statistic(self.statistic)}<{limit}"


class Goal(Frozen):
    """One direction to optimise, for example `minimize cost` or `minimize ttft:p99`."""

    direction: Literal["minimize", "maximize"]
    metric: GoalMetric
    statistic: Annotated[float, Field(gt=0, lt=1)] | Literal["mean"] | None = None
    """For latency metrics only."""

    @classmethod
    def parse(cls, direction: Literal["minimize", "maximize"], text: str) -> Self:
        metric, _, statistic = text.strip().partition(":")
        if metric not in get_args(GoalMetric):
            raise InputError(f"--{direction} '{text}': must be one of {', '.join(get_args(GoalMetric))}")
        natural = "maximize" if metric in _MAXIMIZED else "minimize"
        if direction != natural:
            raise InputError(f"--{direction} '{text}': {metric} can only be {natural}d; use --{natural} {metric}")
        latency = metric in get_args(LatencyMetric)
        if latency and not statistic:
            raise InputError(f"--{direction} '{text}': a latency needs a statistic, for example {metric}:p95")
        if statistic and not latency:
            raise InputError(f"--{direction} '{text}': {metric} has no quantiles; write --{direction} {metric}")
        return cls(direction=direction, metric=metric, statistic=parse_statistic(statistic) if statistic else None)

    def __str__(self) -> str:
        suffix = f":{format_statistic(self.statistic)}" if self.statistic is not None else ""
        return f"{self.direction} {self.metric}{suffix}"


class QualityLimit(Frozen):
    """How much quality may drop against the unquantized model, for example `kl<0.01` or `top1>99%`."""

    metric: Literal["kl", "top1"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Self:
        found = re.match(r"^\s*(kl|top1)\s*([<>])=?\s*([0-9.eE+-]+)\s*(%?)\s*$", text)
        try:
            limit = float(found[3]) if found else -1.0
        except ValueError:
            limit = -1.0
        if found is None or limit < 0 or (found[1] == "kl") != (found[2] == "<"):
            raise InputError(f"--max-quality-drop '{text}': write 'kl<0.01' or 'top1>99%'")
        limit = limit / 100 if found[4] else limit
        if found[1] == "top1" and limit > 1:
            raise InputError(f"--max-quality-drop '{text}': top1 is a share; write 'top1>99%' or 'top1>0.99'")
        return cls(metric=found[1], limit=limit)

    def __str__(self) -> str:
        return f"kl<{self.limit:g}" if self.metric == "kl" else f"top1>{self.limit * 100:g}%"


class EvalsLimit(Frozen):
    """How much the mean score on an eval set may drop against the unquantized model, as `evals:tools>=-0.5pp`."""

    set: str
    """Name of the set: its file's, without ending."""
    drop: Annotated[float, Field(ge=0, lt=1)]
    """As a share: 0.005 is half a percentage point."""

    @classmethod
    def parse(cls, text: str) -> Self:
        found = re.match(r"^\s*evals:([\w.+-]+?)\s*>=?\s*-\s*([0-9.]+)\s*pp\s*$", text)
        try:
            drop = float(found[2]) / 100 if found else -1.0
        except ValueError:
            drop = -1.0
        if found is None or not 0 <= drop < 1:
            raise InputError(f"--max-quality-drop '{text}': write 'evals:SET>=-0.5pp', a drop in percentage points")
        return cls(set=found[1], drop=drop)

    def __str__(self) -> str:
        return f"evals:{self.set}>=-{round(self.drop * 100, 10):g}pp"


def _several(value: Any) -> Any:
    """One limit, or none, as plans said it before there could be several."""
    return () if value is None else (value,) if isinstance(value, QualityLimit | dict) else value


class Objective(Frozen):
    """Limits first, then goals; several goals make a Pareto front."""

    slos: tuple[Slo, ...] = ()
    goals: tuple[Goal, ...] = (Goal(direction="minimize", metric="cost"),)
    max_quality_drop: Annotated[tuple[QualityLimit, ...], BeforeValidator(_several)] = ()
    """All of them are kept."""
    max_evals_drop: tuple[EvalsLimit, ...] = ()
    """Kept as well; said with `--max-quality-drop` too."""

    @property
    def quality_limits(self) -> tuple[QualityLimit | EvalsLimit, ...]:
        return (*self.max_quality_drop, *self.max_evals_drop)

    def __str__(self) -> str:
        parts = [str(g) for g in self.goals]
        if self.slos:
            parts.append("subject to " + ", ".join(str(s) for s in self.slos))
        if self.quality_limits:
            parts.append("quality " + ", ".join(str(limit) for limit in self.quality_limits))
        return "; ".join(parts)
