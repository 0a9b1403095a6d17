"""From metrics to judgement: limits kept or not, goal values, and what the deployment costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fwopt.errors import InputError
from fwopt.spec.candidate import Candidate
from fwopt.spec.hardware import HardwareSpec, Price
from fwopt.spec.objective import Goal, LatencyMetric, Objective, Slo
from fwopt.spec.outcome import Cost, Evaluation, GoalResult, Metrics, SloResult
from fwopt.spec.provenance import ProvenanceShares

Statistic = Callable[[LatencyMetric, "float | Literal['mean']"], float | None]
"""(metric, quantile or `mean`) -> seconds; None where the quantile falls among rejected requests."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the evaluation keeps of the run besides the requests."""

    provenance: ProvenanceShares
    kv_blocks_per_replica: int
    peak_kv_blocks: int
    mean_batch: float
    busy_share: float


def require_price(objective: Objective, hardware: HardwareSpec) -> None:
    """Refuse a cost goal on hardware whose price is unknown, before any work."""
    if hardware.price is None and any(goal.metric == "cost" for goal in objective.goals):
        raise InputError(
            f"minimize cost needs a price, and none is known for {hardware.device.name}; "
            "add for example --price 2.50 (US dollars per GPU and hour), or use --minimize gpus"
        )


def judge_slos(slos: Sequence[Slo], statistic: Statistic) -> tuple[SloResult, ...]:
    results = []
    for slo in slos:
        value = statistic(slo.metric, slo.statistic)
        results.append(SloResult(slo=slo, value_s=value, met=value is not None and value < slo.limit_s))
    return tuple(results)


def slack(results: Sequence[SloResult]) -> float | None:
    """Largest value/limit: below 1 every limit is kept. None without limits, or where one is infinite."""
    if not results or any(r.value_s is None for r in results):
        return None
    return max(r.value_s / r.slo.limit_s for r in results if r.value_s is not None)


def billed_s(metrics: Metrics, window_s: float, kept: bool) -> float:
    """Seconds that the served tokens are paid over.

    A deployment that keeps its limits keeps up with the traffic: it is billed for the window in which
    requests arrived, idle time included; the last answers' tail belongs to the traffic that would follow.
    Where a limit is missed, none is set, or arrivals are a burst shorter than the work, it is billed to
    the last completion.
    """
    return window_s if kept and 2 * window_s >= metrics.duration_s else metrics.duration_s


def cost_of(price: Price | None, gpus: int, metrics: Metrics, seconds: float) -> Cost | None:
    if price is None:
        return None
    per_hour = price.usd_per_gpu_hour * gpus
    total = per_hour * seconds / 3600
    tokens = metrics.output_tokens + metrics.prompt_tokens
    return Cost(
        usd_per_hour=per_hour,
        usd_per_1m_output_tokens=total / metrics.output_tokens * 1e6 if metrics.output_tokens else None,
        usd_per_1m_tokens=total / tokens * 1e6 if tokens else None,
    )


def goal_value(goal: Goal, candidate: Candidate, metrics: Metrics, cost: Cost | None, at: Statistic) -> float | None:
    """Dollars per 1M output tokens, GPUs, requests/s, or seconds; what quality is comes later (`quality.graded`)."""
    if goal.metric == "kl" or goal.metric == "top1":
        return None
    if goal.metric == "cost":
        return cost.usd_per_1m_output_tokens if cost else None
    if goal.metric == "gpus":
        return float(candidate.parallelism.gpus)
    if goal.metric == "throughput":
        return metrics.requests_per_s
    if goal.metric == "goodput":
        return metrics.goodput_requests_per_s
    return at(goal.metric, goal.statistic) if goal.statistic is not None else None


def evaluate_metrics(
    candidate: Candidate,
    metrics: Metrics,
    statistic: Statistic,
    facts: EngineFacts,
    *,
    objective: Objective,
    hardware: HardwareSpec,
    window_s: float,
) -> Evaluation:
    """Judge one simulated run. `window_s`: first to last arrival."""
    slos = judge_slos(objective.slos, statistic)
    feasible = all(r.met for r in slos) and metrics.finished > 0
    seconds = billed_s(metrics, window_s, kept=bool(slos) and feasible)
    cost = cost_of(hardware.price, candidate.parallelism.gpus, metrics, seconds)
    goals = tuple(GoalResult(goal=g, value=goal_value(g, candidate, metrics, cost, statistic)) for g in objective.goals)
    return Evaluation(
        candidate_id=candidate.id,
        source="simulated",
        metrics=metrics,
        slos=slos,
        goals=goals,
        feasible=feasible,
        slack=slack(slos),
        cost=cost,
        provenance=facts.provenance,
        kv_blocks_per_replica=facts.kv_blocks_per_replica,
        peak_kv_blocks=facts.peak_kv_blocks,
        mean_batch=facts.mean_batch,
        busy_share=facts.busy_share,
    )
