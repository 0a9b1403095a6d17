"""The trade-off as points: which two axes tell this plan's story, and where every candidate lies on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fwopt.report import format as f
from fwopt.report.comparison import result_of
from fwopt.report.facts import tightest
from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import QUALITY_METRICS, Goal, format_statistic
from fwopt.spec.outcome import Evaluation, SloResult, Trial
from fwopt.spec.plan import Entry, Plan

Kind = Literal["chosen", "baseline", "nearest", "unmeasured", "front", "met", "missed"]
ORDER: tuple[Kind, ...] = ("missed", "met", "unmeasured", "front", "nearest", "baseline", "chosen")
"""Painting order: the last one lies on top."""

MEANINGS: dict[Kind, str] = {
    "chosen": "chosen",
    "baseline": "baseline",
    "nearest": "nearest miss",
    "unmeasured": "as good or better, but rests on assumed times",
    "front": "on the Pareto front",
    "met": "keeps every SLO",
    "missed": "misses an SLO",
}

Value = Callable[[Candidate, Evaluation], float | None]
WIDE_RANGE = 12.0
"""Above this ratio of largest to smallest value an axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Axis:
    name: str
    value: Value
    show: Callable[[float], str]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate; `x` and `y` in the axes' own units."""

    x: float
    y: float
    kind: Kind
    candidate: Candidate
    trial: int | None


@dataclass(frozen=True, slots=True)
class Front:
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    left_out: int
    """Evaluated candidates without a finite value on an axis."""

    @property
    def ceiling(self) -> float:
        """Highest y drawn: twice the limit, or what the named candidates need; points above it lie on the edge."""
        ys = [p.y for p in self.points]
        if self.y.limit is None:
            return max(ys)
        named = [p.y for p in self.points if p.kind != "missed"]
        if all(p.kind in ("missed", "nearest") for p in self.points):
            return max([*ys, self.y.limit])
        return min(max([*ys, self.y.limit]), max([2 * self.y.limit, *(1.1 * y for y in named)]))

    @property
    def floor(self) -> float:
        """Lowest y drawn; the limit is always in sight."""
        return min([p.y for p in self.points] + ([self.y.limit] if self.y.limit is not None else []))

    @property
    def clipped(self) -> int:
        return sum(p.y > self.ceiling for p in self.points)

    @property
    def log_y(self) -> bool:
        return self.floor > 0 and self.ceiling / self.floor > WIDE_RANGE


def front(plan: Plan, trials: Iterable[Trial]) -> Front:
    """Every evaluated candidate once; chosen, baseline, front and unmeasured marked as the plan has them."""
    x, y = _axes(plan)
    found: dict[str, tuple[Candidate, Evaluation, int | None]] = {}
    for trial in trials:
        if trial.role != "capacity" and trial.outcome.kind == "evaluation":
            found.setdefault(trial.candidate.id, (trial.candidate, trial.outcome, trial.number))
    for entry in entries(plan):
        number = found.get(entry.candidate.id, (None, None, None))[2]
        found[entry.candidate.id] = (entry.candidate, entry.evaluation, number)
    points, left_out = [], 0
    for candidate, evaluation, number in found.values():
        at = (x.value(candidate, evaluation), y.value(candidate, evaluation))
        if at[0] is None or at[1] is None:
            left_out += 1
            continue
        points.append(Point(at[0], at[1], _kind(plan, candidate.id, evaluation.feasible), candidate, number))
    points.sort(key=lambda p: (ORDER.index(p.kind), p.x, p.y, p.candidate.id))
    return Front(x, y, tuple(points), left_out)


def entries(plan: Plan) -> list[Entry]:
    """Every entry that the plan names, each once, the most important first."""
    named = [plan.chosen, plan.nearest_miss, plan.baseline, *plan.runners_up, *plan.pareto, *plan.unmeasured]
    found: dict[str, Entry] = {}
    for entry in named:
        if entry is not None:
            found.setdefault(entry.candidate.id, entry)
    return list(found.values())


def _kind(plan: Plan, candidate_id: str, feasible: bool) -> Kind:
    if plan.chosen is not None and plan.chosen.candidate.id == candidate_id:
        return "chosen"
    if plan.baseline is not None and plan.baseline.candidate.id == candidate_id:
        return "baseline"
    if plan.nearest_miss is not None and plan.nearest_miss.candidate.id == candidate_id:
        return "nearest"
    if candidate_id in {e.candidate.id for e in plan.unmeasured}:
        return "unmeasured"
    if candidate_id in {e.candidate.id for e in plan.pareto}:
        return "front"
    return "met" if feasible else "missed"


def _axes(plan: Plan) -> tuple[Axis, Axis]:
    """Two goals: those two. One: GPUs (what it costs) against the goal, or against the SLO with the least room."""
    goals = plan.objective.goals
    if len(goals) > 1:
        return _goal_axis(goals[0]), _goal_axis(goals[1])
    if goals and goals[0].metric not in ("cost", "gpus"):
        return _GPUS, _goal_axis(goals[0])
    leader = plan.chosen or plan.nearest_miss or plan.baseline
    limit = tightest(leader.evaluation) if leader is not None else None
    return _GPUS, _slo_axis(limit) if limit is not None else _E2E


def _goal_axis(goal: Goal) -> Axis:
    if goal.metric == "gpus":
        return _GPUS

    def value(_: Candidate, evaluation: Evaluation) -> float | None:
        return next((g.value for g in evaluation.goals if g.goal == goal), None)

    if goal.metric == "cost":
        return Axis("$/1M output tokens at this traffic", value, f.usd)
    if goal.metric in ("throughput", "goodput"):
        return Axis(goal.metric, value, f.rate)
    if goal.metric in QUALITY_METRICS:
        name = {"kl": "KL, nats/token", "top1": "top-1 unchanged"}[goal.metric]
        return Axis(name, value, partial(f.goal_value, goal.metric))
    named = f.metric_name(goal.metric)
    return Axis(named if goal.statistic is None else f"{named} {format_statistic(goal.statistic)}", value, f.seconds)


def _slo_axis(limit: SloResult) -> Axis:
    def value(_: Candidate, evaluation: Evaluation) -> float | None:
        found = result_of(evaluation, limit)
        return found.value_s if found else None

    return Axis(f.slo_name(limit.slo), value, f.seconds, limit.slo.limit_s)


_GPUS = Axis("GPUs", lambda candidate, _: float(candidate.parallelism.gpus), lambda v: f"{v:g}")
_E2E = Axis("E2E p95", lambda _, evaluation: evaluation.metrics.e2e.p95_s, f.seconds)
