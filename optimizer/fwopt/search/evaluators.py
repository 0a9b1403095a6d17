"""The one thing the search needs from the outside: something that says what a candidate achieves."""

from __future__ import annotations

from typing import Protocol

from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Evaluation, Rejected


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
