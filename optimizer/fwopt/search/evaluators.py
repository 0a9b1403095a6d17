"""What the search needs from the outside: something that says what a candidate achieves, and what it gives up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Evaluation, Rejected
from fwopt.spec.quality import MeasuredQuality


class Evaluator(Protocol):
    """Replays the workload on a candidate. Must be a pure function: equal arguments, equal bytes.

    Called from several threads at once.
    """

    def evaluate(self, candidate: Candidate, rate_scale: float = 1.0) -> Evaluation | Rejected:
        """`rate_scale` multiplies the workload's arrival rate."""
        ...


class Screen(Protocol):
    """A rung below simulation: says cheaply why a candidate cannot work, or nothing."""

    def check(self, candidate: Candidate) -> Rejected | None: ...


class QualityMeasurer(Protocol):
    """Compares schemes with the unquantized model. Equal names, equal figures; what was measured before is free."""

    def measure(self, schemes: Sequence[str]) -> tuple[MeasuredQuality | None, dict[str, str]]:
        """(figures of those that could be measured, why the others could not). Names as `fwopt quality` has them."""
        ...
