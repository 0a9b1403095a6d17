"""Optuna behind two verbs: ask for candidates, tell what came of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState, create_trial

from fwopt.search import params
from fwopt.search.ranking import losses
from fwopt.search.space import SearchSpace
from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import Objective
from fwopt.spec.outcome import Evaluation, Rejected, Trial

REJECTED_VIOLATION = 10.0
"""Constraint value told for what never reached a number: worse than any measured excess seen in practice."""


@dataclass(slots=True)
class Sampler:
    """Tree-structured Parzen estimator over the space; limits are told as constraints.

    Asked for whole batches and told in the order asked, so that suggestions depend on the seed alone.
    """

    space: SearchSpace
    objective: Objective
    seed: int
    _study: optuna.Study = field(init=False)
    _pending: list[optuna.trial.Trial] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=8)
        directions = [g.direction for g in self.objective.goals]
        self._study = optuna.create_study(sampler=sampler, directions=directions)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take over candidates that were chosen by other means; those outside the space are left out."""
        for trial in trials:
            found = params.to_params(self.space, trial.candidate)
            if found is None:
                continue
            values, violation = self._judge(trial.outcome)
            with _quietly():
                self._study.add_trial(
                    create_trial(
                        params=found,
                        distributions=params.distributions(self.space, found),
                        values=values,
                        constraints={"limits": violation},
                    )
                )

    def ask(self, count: int) -> list[Candidate]:
        assert not self._pending, "tell the last batch first"
        with _quietly():
            self._pending = [self._study.ask() for _ in range(count)]
            return [params.suggest(self.space, trial) for trial in self._pending]

    def tell(self, outcomes: Sequence[Evaluation | Rejected]) -> None:
        """In the order asked."""
        with _quietly():
            for trial, outcome in zip(self._pending, outcomes, strict=True):
                values, violation = self._judge(outcome)
                trial.set_constraint("limits", violation)
                self._study.tell(trial, values, state=TrialState.COMPLETE)
        self._pending = []

    def _judge(self, outcome: Evaluation | Rejected) -> tuple[list[float], float]:
        worst = [1e12 if g.direction == "minimize" else -1e12 for g in self.objective.goals]
        if outcome.kind == "rejected":
            return worst, REJECTED_VIOLATION
        missing = [bad if g.value is None else g.value for g, bad in zip(outcome.goals, worst, strict=True)]
        if outcome.feasible:
            return [self._graded(outcome)] if len(missing) == 1 else missing, 0.0
        excess = REJECTED_VIOLATION if outcome.slack is None else min(max(outcome.slack - 1, 1e-6), REJECTED_VIOLATION)
        return missing, excess

    def _graded(self, evaluation: Evaluation) -> float:
        """A single goal, with up to 1 % off for distance from the limits: whole GPUs tie, and of the tied the
        one with most headroom is wanted."""
        value = losses(evaluation)[0]
        if value in (float("inf"), float("-inf")):
            value = 1e12
        graded = value + abs(value) * 0.01 * (evaluation.slack or 0.0)
        return graded if self.objective.goals[0].direction == "minimize" else -graded


def _quietly() -> warnings.catch_warnings:
    """Optuna marks parts of its interface experimental on every call; that is not the user's concern."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)
