"""What one engine step computes: the description that simulator, engine and step-time tables share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """The work of one step on one replica; `perf.grid.StepGrid` gives it a time, the reference engine measures it."""

    decodes: int
    """Sequences that compute one token each and sample the next."""
    context_tokens: int
    """Tokens that the decodes attend to, summed, the one being computed included."""
    chunks: tuple[tuple[int, int], ...] = ()
    """(tokens already in the cache, tokens computed in this step) of each prompt chunk."""
    completed: int = 0
    """Chunks that complete their prompt, and so sample a token too."""

    @property
    def tokens(self) -> int:
        return self.decodes + sum(length for _, length in self.chunks)

    @property
    def sequences(self) -> int:
        return self.decodes + len(self.chunks)

    @property
    def sampled(self) -> int:
        return self.decodes + self.completed
