"""Capacities of finalists: where each meets its limits, and who else goes as far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fwopt.search.asked import meets
from fwopt.search.capacity import CEILING, TOLERANCE, Edge, capacity_of, find_edge
from fwopt.search.ladder import Ask
from fwopt.search.steps import lockstep
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Evaluation, Rejected, Trial
from fwopt.spec.plan import Capacity

CHALLENGERS = 48
"""Other ties tried at the best finalist's edge."""


@dataclass(slots=True)
class Edges:
    """`run`: asks, at most so many at a time -> their trials."""

    run: Callable[[Sequence[Ask], int], list[Trial]]
    batch: int
    window_s: float
    """First to last arrival."""
    found: dict[str, Capacity] = field(default_factory=dict)
    """By candidate id."""

    def measure(self, candidates: Sequence[Candidate], start: float = 1.0) -> None:
        def answer(batch: list[tuple[int, float]]) -> list[Evaluation | Rejected]:
            asks = [Ask(candidates[i], "capacity", rate) for i, rate in batch]
            return [t.outcome for t in self.run(asks, len(asks))]

        edges: list[Edge] = lockstep([find_edge(start) for _ in candidates], answer)
        for candidate, edge in zip(candidates, edges, strict=True):
            capacity = capacity_of(edge, self.window_s)
            if capacity is not None:
                self.found[candidate.id] = capacity

    def challenge(self, finalists: Sequence[Candidate], ties: Sequence[Trial]) -> None:
        """One run for each other tie on as many GPUs, just above the best finalist's edge (at the ceiling where
        that is it): whoever holds there goes further, and is measured too."""
        measured = [c for c in finalists if c.id in self.found]
        if not measured:
            return
        best = max(measured, key=lambda c: self.found[c.id].rate_scale / c.parallelism.gpus)
        rate = min(self.found[best.id].rate_scale * (1 + TOLERANCE), CEILING)
        others = [
            t.candidate
            for t in ties
            if t.candidate.id not in self.found and t.candidate.parallelism.gpus == best.parallelism.gpus
        ]
        outcomes = self.run([Ask(c, "capacity", rate) for c in others[:CHALLENGERS]], self.batch)
        further = [c for c, t in zip(others, outcomes, strict=False) if meets(t.outcome)]
        self.measure(further, start=rate)
