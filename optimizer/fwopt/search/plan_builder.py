"""Trials -> Plan: what to deploy, why, and why the others fell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fwopt import __version__
from fwopt.search import notes, ranking
from fwopt.search.capacity import TOLERANCE
from fwopt.search.command import command
from fwopt.search.gate import QualityGate
from fwopt.search.ledger import Ledger
from fwopt.search.quality import estimate
from fwopt.search.run_folder import RunInputs
from fwopt.search.schemes import needs_checkpoint
from fwopt.search.tuner import Found
from fwopt.search.verdicts import scheme_verdicts, told
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Entry, Plan, RejectedCount
from fwopt.spec.quality import MeasuredQuality

RUNNERS_UP = 10


@dataclass(frozen=True, slots=True)
class PlanBuilder:
    """Reads a finished (or interrupted) search. Pure: the same trials give the same plan."""

    inputs: RunInputs
    workload: str
    profile: str
    found: Found
    notes: tuple[str, ...] = ()
    """What the composition knows: skipped lines, default objective, profile of another version."""
    ledger: Ledger | None = None
    """Quality measured during the search."""

    def build(self) -> Plan:
        at_load = [t for t in self.found.trials if t.rate_scale == 1.0]
        evaluated = [t for t in at_load if t.outcome.kind == "evaluation"]
        gate = QualityGate.of(self.inputs, self.ledger)
        feasible = [
            t for t in evaluated if ranking.evaluation_of(t).feasible and gate.passes(t.candidate, settled=True)
        ]
        sound = [t for t in feasible if not ranking.rests_on_assumptions(ranking.evaluation_of(t))]
        eligible = feasible if self.inputs.allow_unmeasured else sound
        chosen = self.choose(eligible)
        front = ranking.pareto_front(eligible)
        unmeasured = [] if self.inputs.allow_unmeasured else self._unmeasured(feasible, sound, chosen)
        short = [t for t in evaluated if not ranking.evaluation_of(t).feasible]
        miss = None if chosen else ranking.nearest_miss(short or evaluated)
        baseline = self.found.baseline
        verdicts = scheme_verdicts(self.ledger, self.found, eligible, chosen) if self.ledger else ()
        return Plan(
            fwopt_version=__version__,
            workload=self.workload,
            rate_scale=self.inputs.rate_scale,
            model=self.inputs.model,
            hardware=self.inputs.hardware,
            engine=self.inputs.engine,
            objective=self.inputs.objective,
            profile=self.profile,
            kernels=self.inputs.kernels,
            intervals=self.inputs.intervals,
            inputs=self.inputs.pins,
            seed=self.inputs.seed,
            command=command(self.inputs),
            status=self._status(chosen),
            chosen=self._entry(chosen),
            baseline=self._entry(baseline) if baseline and baseline.outcome.kind == "evaluation" else None,
            baseline_kind="given" if self.inputs.baseline else "engine defaults",
            runners_up=self._entries(self._runners_up(eligible, chosen)),
            pareto=self._entries(front) if len(self.inputs.objective.goals) > 1 else (),
            unmeasured=self._entries(unmeasured),
            nearest_miss=self._entry(miss),
            rejected=rejected_counts(at_load),
            evaluated=len(evaluated),
            schemes=verdicts,
            notes=(
                *self.notes,
                *notes.about(self.inputs, self.found, chosen, miss, len(unmeasured)),
                *(told(verdicts, self.ledger) if self.ledger else notes.quality(self.inputs, chosen)),
            ),
        )

    @property
    def _measured(self) -> MeasuredQuality | None:
        return self.ledger.measured if self.ledger is not None else self.inputs.quality

    def choose(self, eligible: Sequence[Trial]) -> Trial | None:
        """The best goal value; of ties, the one that goes furthest. Several goals: the knee of the front."""
        if len(self.inputs.objective.goals) > 1:
            return ranking.knee(ranking.pareto_front(eligible))
        near = ranking.tied(eligible)
        measured = [t for t in near if t.candidate.id in self.found.capacities]
        if not measured:
            return near[0] if near else None
        best = min(self._capacity_loss(t) for t in measured)
        equal = [t for t in measured if self._capacity_loss(t) <= best * (1 - TOLERANCE)]
        return min(equal, key=self._gentleness)

    def _gentleness(self, trial: Trial) -> tuple[float, int, float, int]:
        """Least quality lost, then fewest departures from the baseline's own settings, then distance from limits."""
        loss = estimate(trial.candidate, self.inputs.model, self._measured).kl
        return loss, self._departures(trial), ranking.order(trial)[1], trial.number

    def _departures(self, trial: Trial) -> int:
        base = self.found.baseline.candidate if self.found.baseline else Candidate()
        here, there = trial.candidate.batching.model_dump(), base.batching.model_dump()
        others = int(trial.candidate.router != base.router) + int(trial.candidate.kernels != base.kernels)
        others += int(trial.candidate.speculation != base.speculation)
        return sum(1 for name in here if here[name] != there[name]) + others

    def _capacity_loss(self, trial: Trial) -> float:
        """Negative requests/s (per GPU): the smaller the further it goes."""
        return ranking.capacity_loss(self.inputs.objective, trial, self.found.capacities.get(trial.candidate.id))

    def _needs(self, trial: Trial) -> str | None:
        return needs_checkpoint(trial.candidate.quantization, self.inputs.model)

    def _runners_up(self, eligible: Sequence[Trial], chosen: Trial | None) -> list[Trial]:
        """Best first: ties by capacity where it was measured, then by distance from the limits."""
        others = [t for t in eligible if chosen is None or t.candidate.id != chosen.candidate.id]
        near = {t.number for t in ranking.tied(eligible)}

        def rank(trial: Trial) -> tuple[float, tuple[float, ...], float, int]:
            if trial.number in near:
                return self._capacity_loss(trial), (), *ranking.order(trial)[1:]
            return math.inf, *ranking.order(trial)

        return sorted(others, key=lambda t: (t.number not in near, *rank(t)))[:RUNNERS_UP]

    def _unmeasured(self, feasible: Sequence[Trial], sound: Sequence[Trial], chosen: Trial | None) -> list[Trial]:
        """What would beat or tie the chosen plan if assumed operator times were trusted, best of each precision."""
        others = [t for t in feasible if t not in sound]
        if chosen is not None:
            best = ranking.losses(ranking.evaluation_of(chosen))[0]
            width = ranking.tie_width(self.inputs.objective.goals[0])
            others = [t for t in others if ranking.losses(ranking.evaluation_of(t))[0] <= best + abs(best) * width]
        first: dict[str, Trial] = {}
        for trial in sorted(others, key=ranking.order):
            first.setdefault(trial.candidate.quantization.content_hash(), trial)
        return list(first.values())

    def _entries(self, trials: Sequence[Trial]) -> tuple[Entry, ...]:
        return tuple(entry for trial in trials if (entry := self._entry(trial)) is not None)

    def _entry(self, trial: Trial | None) -> Entry | None:
        if trial is None:
            return None
        drafters = self.inputs.drafters
        return Entry(
            candidate=trial.candidate,
            evaluation=ranking.evaluation_of(trial),
            capacity=self.found.capacities.get(trial.candidate.id),
            quality=estimate(trial.candidate, self.inputs.model, self._measured),
            draft=drafters.draft_model(trial.candidate.speculation) if drafters is not None else None,
            needs_checkpoint=self._needs(trial),
        )

    def _status(self, chosen: Trial | None) -> Literal["complete", "interrupted", "infeasible"]:
        if self.found.stopped == "interrupted":
            return "interrupted"
        return "complete" if chosen else "infeasible"


def rejected_counts(trials: Sequence[Trial]) -> tuple[RejectedCount, ...]:
    """Rejections by rung and reason, most frequent first. A simulated candidate that misses a limit counts too."""
    counts: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], str] = {}
    for trial in trials:
        outcome = trial.outcome
        if outcome.kind == "rejected":
            key = (outcome.rung, outcome.reason)
        elif not outcome.feasible:
            key = ("simulation", notes.missed(outcome))
        else:
            continue
        counts[key] = counts.get(key, 0) + 1
        examples.setdefault(key, f"{trial.candidate.label}{notes.shortfall(outcome)}")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(RejectedCount(rung=r, reason=why, count=n, example=examples[r, why]) for (r, why), n in ranked)
