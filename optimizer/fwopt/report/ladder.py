"""How many candidates fell on which rung of the ladder, cheapest check first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from fwopt.report.format import plural
from fwopt.spec.outcome import Evaluation, Rejected, Rung, Trial
from fwopt.spec.plan import Plan, RejectedCount

RUNGS: tuple[Rung, ...] = get_args(Rung)
AFTER_START = frozenset({"simulation", "live"})
"""Rungs that a candidate falls on only by being evaluated."""
MEANING: dict[str, str] = {
    "memory": "does not fit in GPU memory",
    "bound": "a limit is out of reach even at the hardware's peak rates",
    "dominated": "cannot beat a candidate that was already evaluated",
    "quality": "drops more quality than the objective allows",
    "unmeasured": "needs an operator that nobody timed and no prior covers",
    "simulation": "simulated, and misses the objective",
    "live": "measured on a live server, and misses the objective",
}


@dataclass(frozen=True, slots=True)
class Step:
    """Candidates that reached a rung and those that fell there."""

    rung: str
    meaning: str
    reached: int
    fell: int
    reasons: tuple[RejectedCount, ...]

    @property
    def left(self) -> int:
        return self.reached - self.fell


@dataclass(frozen=True, slots=True)
class Counts:
    """Candidates, each once; probes are evaluations at other rates that found the SLO capacity."""

    evaluated: int
    met: int
    missed: int
    probes: int
    fell: int
    """Before evaluation."""

    @property
    def considered(self) -> int:
        return self.evaluated + self.fell

    @property
    def text(self) -> str:
        """`721 candidates considered, 73 evaluated: 58 keep every SLO, 15 miss one`."""
        text = f"{plural(self.considered, 'candidate')} considered, {self.evaluated:,} evaluated"
        if self.met + self.missed:
            text += f": {self.met:,} keep every SLO, {self.missed:,} miss one"
        return text + (f"; {plural(self.probes, 'run')} at other rates found the capacities" if self.probes else "")


def counts(plan: Plan, trials: Iterable[Trial]) -> Counts:
    """From the trials; from the plan alone where it comes without them."""
    outcome: dict[str, Evaluation | Rejected] = {}
    probes = 0
    for trial in trials:
        if trial.role == "capacity":
            probes += 1
        else:
            outcome[trial.candidate.id] = trial.outcome
    started = [o for o in outcome.values() if isinstance(o, Evaluation) or o.rung in AFTER_START]
    met = sum(isinstance(o, Evaluation) and o.feasible for o in started)
    fell = sum(r.count for r in plan.rejected if r.rung not in AFTER_START)
    return Counts(len(started) or plan.evaluated, met, len(started) - met, probes, fell)


def ladder(plan: Plan, considered: int) -> list[Step]:
    """Rungs on which something fell, in order; what is left after the last one keeps the objective."""
    left = considered
    steps = []
    known = [*RUNGS, *sorted({r.rung for r in plan.rejected} - set(RUNGS))]
    for rung in known:
        reasons = tuple(sorted((r for r in plan.rejected if r.rung == rung), key=lambda r: (-r.count, r.reason)))
        if reasons:
            fell = sum(r.count for r in reasons)
            steps.append(Step(rung, MEANING.get(rung, "rejected"), left, fell, reasons))
            left -= fell
    return steps
