"""What the simulator may leave out, to show what it is worth (`fwopt simulate --without`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Each field is an effect's name in `fwopt.perf.effects`."""

    eviction: bool = False
    """Cached prefixes are never forgotten, as if they took no memory."""
    recompute: bool = False
    """A preempted sequence comes back with all it had computed."""
    context: bool = False
    """A chunk of a prompt attends to nothing before it."""

    @classmethod
    def of(cls, off: frozenset[str]) -> LeftOut:
        return cls(eviction="eviction" in off, recompute="recompute" in off, context="context" in off)
