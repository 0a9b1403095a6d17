"""What every way to take samples offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fwopt.spec.bench import Arm, ArmName
from fwopt.spec.bench_result import Key


@dataclass(frozen=True, slots=True)
class Visit:
    """One run: samples by series, or why there are none."""

    samples: dict[str, tuple[float, ...]]
    lost: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


class Sampler(Protocol):
    """A context manager; leaving it ends whatever it started."""

    exact: bool
    notes: tuple[str, ...]

    def key(self, arm: ArmName) -> Key: ...

    def visit(self, arm: ArmName) -> Visit:
        """One run of one arm. What goes wrong with the code under test is a visit with a problem; FwoptError is for
        what nobody could measure."""
        ...

    def __enter__(self) -> Sampler: ...

    def __exit__(self, *details: object) -> None: ...


class Make(Protocol):
    def __call__(self, bench: Any, arms: Mapping[ArmName, Arm]) -> Sampler: ...
