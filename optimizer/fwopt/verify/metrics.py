"""The figures that promise and measurement are compared by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fwopt.metrics.records import FINISHED, Records
from fwopt.metrics.summary import statistic
from fwopt.spec.objective import LatencyMetric, Objective, format_statistic

THROUGHPUT = "throughput"

Compared = tuple[LatencyMetric, "float | Literal['mean']"]
STANDARD: tuple[Compared, ...] = (
    ("ttft", "mean"), ("ttft", 0.5), ("ttft", 0.9), ("tpot", "mean"), ("tpot", 0.5), ("tpot", 0.9), ("e2e", 0.5),
    ("e2e", 0.9),
)  # fmt: skip


def compared(objective: Objective) -> tuple[Compared, ...]:
    """The standard ones and every latency that the objective limits or optimises, but for queueing,
    which no server tells."""
    wanted = [(slo.metric, slo.statistic) for slo in objective.slos]
    wanted += [
        (goal.metric, goal.statistic)
        for goal in objective.goals
        if goal.metric in ("ttft", "tpot", "itl", "e2e") and goal.statistic is not None
    ]
    extra = [pair for pair in wanted if pair[0] != "queue" and pair not in STANDARD]
    return (*STANDARD, *dict.fromkeys(extra))


def name(pair: Compared) -> str:
    return f"{pair[0]}:{format_statistic(pair[1])}"


def figures(records: Records, pairs: Sequence[Compared]) -> dict[str, float | None]:
    """Every compared metric; seconds, and output tokens per second from first arrival to last completion."""
    found: dict[str, float | None] = {name(pair): statistic(records, *pair) for pair in pairs}
    done = records.status == FINISHED
    span = float(records.finish_s[done].max() - records.arrival_s.min()) if done.any() else 0.0
    found[THROUGHPUT] = float(records.output_tokens[done].sum()) / span if span > 0 else None
    return found
