"""What a search has seen so far, for whoever watches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fwopt.search import notes, ranking
from fwopt.search.tuner import Phase
from fwopt.spec.objective import QUALITY_METRICS, Goal
from fwopt.spec.outcome import Trial

UNITS = {"cost": ("$", "/1M output tokens"), "gpus": ("", " GPUs"), "throughput": ("", " requests/s")}


@dataclass(slots=True)
class Progress:
    """Fed with every trial; read by the display."""

    budget: int
    allow_unmeasured: bool = False
    phase: Phase = "baseline"
    evaluated: int = 0
    capacity_runs: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By rung or limits missed."""
    best: Trial | None = None

    def observe(self, trial: Trial) -> None:
        outcome = trial.outcome
        if trial.rate_scale != 1.0:
            self.capacity_runs += 1
        elif outcome.kind == "rejected":
            self.rejected[outcome.rung] += 1
        else:
            self.evaluated += 1
            sound = self.allow_unmeasured or not ranking.rests_on_assumptions(outcome)
            if not outcome.feasible:
                self.rejected[notes.missed(outcome)] += 1
            elif sound and (self.best is None or ranking.order(trial) < ranking.order(self.best)):
                self.best = trial

    @property
    def best_text(self) -> str:
        """`$0.213/1M output tokens: fp8 tp1 x3 …`; before anything fits, says so."""
        if self.best is None:
            return "none keeps every limit yet"
        first = ranking.evaluation_of(self.best).goals[0]
        return f"{goal_text(first.goal, first.value)}: {self.best.candidate.label}"

    @property
    def rejected_text(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.rejected.most_common(4)) or "none"


def goal_text(goal: Goal, value: float | None) -> str:
    if value is None:
        return "unknown"
    if goal.statistic is not None:
        return f"{goal.metric} {notes.seconds(value)}"
    if goal.metric in QUALITY_METRICS:
        return f"{goal.metric} {value:.4g}"
    before, after = UNITS.get(goal.metric, ("", " requests/s"))
    return f"{before}{value:.3f}{after}" if goal.metric == "cost" else f"{before}{value:.4g}{after}"
