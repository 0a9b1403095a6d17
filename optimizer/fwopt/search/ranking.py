"""Which candidate is best, and why: goals first, then how far each deployment goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fwopt.spec.objective import Goal, Objective
from fwopt.spec.outcome import Evaluation, Trial
from fwopt.spec.plan import Capacity

ASSUMED_LIMIT = 0.05
"""Largest share of simulated GPU time that may rest on stated efficiency priors in a deployment that is chosen."""

TIES: dict[str, float] = {"cost": 1e-3, "gpus": 1e-9, "throughput": 1e-2, "goodput": 1e-2, "kl": 1e-2, "top1": 1e-3}
"""Relative difference below which two goal values are a tie; latencies: `LATENCY_TIE`."""
LATENCY_TIE = 1e-2


def rests_on_assumptions(evaluation: Evaluation) -> bool:
    return evaluation.provenance.assumed > ASSUMED_LIMIT


def tie_width(goal: Goal) -> float:
    return TIES.get(goal.metric, LATENCY_TIE)


def loss(goal: Goal, value: float | None) -> float:
    """Smaller is better; infinite where there is no value."""
    if value is None:
        return math.inf
    return value if goal.direction == "minimize" else -value


def losses(evaluation: Evaluation) -> tuple[float, ...]:
    return tuple(loss(g.goal, g.value) for g in evaluation.goals)


def evaluation_of(trial: Trial) -> Evaluation:
    assert trial.outcome.kind == "evaluation"
    return trial.outcome


def order(trial: Trial) -> tuple[tuple[float, ...], float, int]:
    """Goal values, then distance from the limits, then order of discovery."""
    evaluation = evaluation_of(trial)
    return losses(evaluation), math.inf if evaluation.slack is None else evaluation.slack, trial.number


def tied(trials: Sequence[Trial]) -> list[Trial]:
    """Those whose first goal value is as good as the best, furthest from their limits first."""
    if not trials:
        return []
    best = min(losses(evaluation_of(t))[0] for t in trials)
    width = tie_width(evaluation_of(trials[0]).goals[0].goal)
    near = [t for t in trials if losses(evaluation_of(t))[0] <= best + abs(best) * width]
    return sorted(near, key=lambda t: (order(t)[1], t.number))


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Of candidates alike but for limits that never bind (equal outcomes to the last digit), the first."""
    found: dict[str, Trial] = {}
    for trial in trials:
        e = evaluation_of(trial)
        found.setdefault(f"{_structure(trial)} {e.slos} {e.goals} {e.metrics.e2e}", trial)
    return list(found.values())


def finalists(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Up to `count` of the tied: first the best of each precision and layout, then the rest by distance."""
    seen: set[str] = set()
    first: list[Trial] = []
    rest: list[Trial] = []
    for trial in distinct(tied(trials)):
        key = _structure(trial)
        (rest if key in seen else first).append(trial)
        seen.add(key)
    return (first + rest)[:count]


def _structure(trial: Trial) -> str:
    c = trial.candidate
    return f"{c.quantization.content_hash()} {c.kv_dtype} {c.parallelism.content_hash()}"


def capacity_loss(objective: Objective, trial: Trial, capacity: Capacity | None) -> float:
    """Smaller is better. Cost, GPUs and latency goals prefer more requests/s per GPU at the edge (the same
    order as fewer dollars per token there); throughput and goodput prefer more requests/s in all."""
    if capacity is None:
        return math.inf
    if objective.goals[0].metric in ("throughput", "goodput"):
        return -capacity.requests_per_s
    return -capacity.requests_per_s / trial.candidate.parallelism.gpus


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats on every goal, by the first goal; of equals the one furthest from its limits."""
    front: list[Trial] = []
    for trial in sorted(trials, key=order):
        mine = losses(evaluation_of(trial))
        if math.inf in mine:
            continue
        if not any(_dominates(losses(evaluation_of(other)), mine) for other in front):
            front.append(trial)
    return front


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """At least as good everywhere (an equal dominates: one of each value is enough)."""
    return all(x <= y for x, y in zip(a, b, strict=True))


def knee(front: Sequence[Trial]) -> Trial | None:
    """Nearest to the ideal point when every goal is scaled to its range on the front."""
    if not front:
        return None
    table = [losses(evaluation_of(t)) for t in front]
    low = [min(column) for column in zip(*table, strict=True)]
    span = [max(column) - least or 1.0 for column, least in zip(zip(*table, strict=True), low, strict=True)]
    distances = [sum(((v - a) / s) ** 2 for v, a, s in zip(row, low, span, strict=True)) for row in table]
    return front[distances.index(min(distances))]


def nearest_miss(trials: Sequence[Trial]) -> Trial | None:
    """The evaluation closest to its limits: fewest infinite ones first, then the smallest excess."""

    def distance(trial: Trial) -> tuple[int, float, float, int]:
        e = evaluation_of(trial)
        infinite = sum(1 for r in e.slos if r.value_s is None)
        excess = max((r.value_s / r.slo.limit_s for r in e.slos if r.value_s is not None), default=math.inf)
        return infinite, excess, trial.candidate.parallelism.gpus, trial.number

    return min(trials, key=distance, default=None)
