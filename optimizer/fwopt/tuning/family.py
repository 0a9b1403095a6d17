"""Operators as a workload calls them. Imports nothing heavy: also used where only torch, Triton and numpy are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TORCH = "torch"
"""Name of the fallback, where a variant's would stand."""


@dataclass(frozen=True, slots=True)
class Family:
    """An operator with everything fixed but what changes from step to step."""

    operator: str
    format: str
    fixed: tuple[tuple[str, int], ...]
    axes: tuple[str, ...]
    """Names of the dimensions that steps change: of tokens, or of sequences and their context."""

    def shape(self, point: tuple[int, ...]) -> dict[str, int]:
        return {**dict(self.fixed), **dict(zip(self.axes, point, strict=True))}

    @property
    def label(self) -> str:
        """For example `w4a16 g128 n=4096 k=4096`."""
        return " ".join([self.operator, self.format, *(f"{name}={value}" for name, value in self.fixed)])


@dataclass(frozen=True, slots=True)
class Demand:
    """One family's calls over the whole workload."""

    family: Family
    points: NDArray[np.int64]
    """(P, axes)"""
    calls: Floats
    """(P,)"""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant at one shape."""

    format: str
    shape: tuple[tuple[str, int], ...]
    variant: str
    default: bool
    chosen: bool
    calls: float
    """How often the workload that was tuned for calls the bucket of this shape."""
    p20_s: float
    p50_s: float
    p80_s: float
    samples: int


def shape_of(family: Family, point: tuple[int, ...], dimensions: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """The whole shape, in the operator's order. Sequences of a batch lie between half its context and that above it,
    so that the mean is the context counted: batches of a served trace are never even. Prompt chunks are
    timed even, since their time is in no proportion to their lengths; a context holds its chunk."""
    shape = family.shape(point)
    if "shortest" in dimensions:
        mean = max(shape["context"], shape.get("tokens", 1))
        shape["shortest"] = mean if "tokens" in shape else max(1, mean // 2)
        shape["context"] = 2 * mean - shape["shortest"]
    return tuple((name, shape[name]) for name in dimensions)
