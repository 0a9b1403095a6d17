"""Whether a candidate keeps enough quality to be chosen: by figures, and by tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fwopt.search.evals import EvalsScreen
from fwopt.search.evaluators import Screen
from fwopt.search.ledger import Ledger
from fwopt.search.quality import QualityScreen
from fwopt.search.run_folder import RunInputs
from fwopt.spec.candidate import Candidate


@dataclass(frozen=True, slots=True)
class QualityGate:
    """A baseline is simulated whatever it gives up; only what passes here is chosen."""

    evals: Screen
    figures: Screen
    """`ledger` itself where there is one: what it has not measured yet passes."""
    ledger: Ledger | None = None
    """Measures quality on the way; None: what is known must do."""

    @classmethod
    def of(cls, inputs: RunInputs, ledger: Ledger | None = None) -> Self:
        known = QualityScreen(inputs.model, inputs.objective.max_quality_drop, inputs.quality)
        return cls(EvalsScreen.of(inputs), ledger or known, ledger)

    @property
    def screens(self) -> tuple[Screen, Screen]:
        """As rungs of the ladder."""
        return self.evals, self.figures

    def passes(self, candidate: Candidate, *, settled: bool) -> bool:
        """`settled`: nothing more is measured, so literature has to do for the rest."""
        if any(screen.check(candidate) is not None for screen in self.screens):
            return False
        return self.ledger is None or not settled or self.ledger.held(candidate) is None
