"""Quality measured while a search goes on: once a scheme, and only of schemes that could still win.

The search goes its way as if a scheme that nobody measured lost nothing. When it has a leader, the leader's scheme is
measured; then those of all that tie with it, or lie on the front beside it. A scheme that fails its limit takes all
its candidates with it, and the search is walked again without them: what was simulated is recalled. So the choice is
the one that measuring everything first would have led to, wherever the whole space is considered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from fwopt.atomic import written_whole
from fwopt.errors import RunFolderError
from fwopt.search import ranking
from fwopt.search.evaluators import QualityMeasurer
from fwopt.search.log import TrialLog
from fwopt.search.quality import QualityScreen, estimate, graded, measured_name
from fwopt.spec.candidate import Candidate
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import QUALITY_METRICS, Objective
from fwopt.spec.outcome import Rejected, Trial
from fwopt.spec.quality import MeasuredQuality, RunQuality

LOSSLESS = {"kl": 0.0, "top1": 1.0}
"""What a scheme that was not measured loses at least."""


@dataclass(slots=True)
class Ledger:
    """What is known of each scheme. `path`: kept there, for the next process."""

    model: ModelSpec
    objective: Objective
    measurer: QualityMeasurer
    path: Path | None = None
    measured: MeasuredQuality | None = None
    failed: dict[str, str] = field(default_factory=dict)
    asked_by: dict[str, str] = field(default_factory=dict)

    def load(self) -> None:
        """Take over what an earlier process of this run measured."""
        if self.path is None or not self.path.is_file():
            return
        try:
            kept = RunQuality.model_validate_json(self.path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise RunFolderError(f"{self.path}: cannot be read as the quality of a run ({error}); remove it") from None
        self.measured, self.failed, self.asked_by = kept.measured, dict(kept.failed), dict(kept.asked_by)

    def name(self, candidate: Candidate) -> str:
        return measured_name(candidate, self.model)

    def unknown(self, candidate: Candidate) -> bool:
        name = self.name(candidate)
        return bool(name) and name not in self.failed and not (self.measured and name in self.measured.schemes)

    def check(self, candidate: Candidate) -> Rejected | None:
        """As a screen: what was not measured passes."""
        why = self.failed.get(self.name(candidate))
        if why is not None:
            reason = f"quality could not be measured: {why}"
            return Rejected(candidate_id=candidate.id, rung="quality", reason=reason)
        return None if self.unknown(candidate) else self.held(candidate)

    def held(self, candidate: Candidate) -> Rejected | None:
        """Against the limits by whatever is known, literature at last."""
        return QualityScreen(self.model, self.objective.max_quality_drop, self.measured).check(candidate)

    def wanted(self, eligible: Sequence[Trial]) -> list[Trial]:
        """One trial for each scheme to be measured next, the leader's first; none when the choice is settled."""
        if not eligible:
            return []
        trials = [self._optimistic(trial) for trial in eligible]
        if len(self.objective.goals) > 1:
            contenders = ranking.pareto_front(trials)
        else:
            leader = min(trials, key=ranking.order)
            contenders = [leader] if self.unknown(leader.candidate) else ranking.tied(trials)
        first: dict[str, Trial] = {}
        for trial in contenders:
            if self.unknown(trial.candidate):
                first.setdefault(self.name(trial.candidate), trial)
        return list(first.values())

    def measure(self, trials: Sequence[Trial]) -> None:
        """Their schemes, and on disk before they count."""
        names = [self.name(trial.candidate) for trial in trials]
        measured, failed = self.measurer.measure(names)
        if measured is not None and self.measured is not None and measured.key != self.measured.key:
            raise RunFolderError(
                f"{self.path or measured.file}: the model's weights or tokenizer changed since other schemes were "
                f"measured (study {self.measured.key} then, {measured.key} now); start a new run"
            )
        if measured is not None:
            before = self.measured.schemes if self.measured is not None else {}
            fresh = {name: cost for name, cost in measured.schemes.items() if name in names}
            self.measured = measured.model_copy(update={"schemes": before | fresh})
        self.failed |= {name: why for name, why in failed.items() if name in names}
        self.asked_by |= dict(zip(names, (trial.candidate.label for trial in trials), strict=True))
        missing = [
            name for name in names if not (name in self.failed or (self.measured and name in self.measured.schemes))
        ]
        assert not missing, f"neither figures nor a reason for {missing}"
        if self.path is not None:
            kept = RunQuality(measured=self.measured, failed=self.failed, asked_by=self.asked_by)
            with written_whole(self.path) as path:
                path.write_text(kept.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def apply(self, log: TrialLog) -> bool:
        """Bring what was simulated in line with what is known since: candidates of a scheme that fell are rejected,
        goals get their measured values. Whether anything changed. A baseline is always worth a number."""
        changed = False
        for trial in list(log.trials):
            outcome = trial.outcome
            if outcome.kind == "rejected" or self.unknown(trial.candidate):
                continue
            rejected = self.check(trial.candidate)
            if rejected is not None and trial.role != "baseline":
                log.amend(trial.model_copy(update={"outcome": rejected}))
                changed = True
                continue
            now = graded(outcome, estimate(trial.candidate, self.model, self.measured))
            if now != outcome:
                log.amend(trial.model_copy(update={"outcome": now}))
                changed = True
        return changed

    def _optimistic(self, trial: Trial) -> Trial:
        """With goals of quality at their best, where they were not measured."""
        evaluation = ranking.evaluation_of(trial)
        if not self.unknown(trial.candidate):
            return trial
        goals = tuple(
            r.model_copy(update={"value": LOSSLESS[r.goal.metric]}) if r.goal.metric in QUALITY_METRICS else r
            for r in evaluation.goals
        )
        return trial.model_copy(update={"outcome": evaluation.model_copy(update={"goals": goals})})
