"""Times that remember how they are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.perf.grid import Floats
from fwopt.spec.provenance import CODES


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds, split by kind of evidence: last axis is `spec.provenance.CODES`."""

    by_code: Floats

    @classmethod
    def of(cls, seconds: Floats, code: NDArray[np.int_] | int) -> Timed:
        """Seconds known in one way each; `code` is an array of the same shape or one for all."""
        seconds = np.asarray(seconds, dtype=np.float64)
        codes = np.broadcast_to(np.asarray(code), seconds.shape)
        return cls(seconds[..., None] * (codes[..., None] == np.arange(len(CODES))))

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> Timed:
        return cls(np.zeros((*shape, len(CODES))))

    @property
    def seconds(self) -> Floats:
        total: Floats = self.by_code.sum(-1)
        return total

    @property
    def share(self) -> Floats:
        """Fractions of the time; where the time is zero, those of the next point (or all measured)."""
        total = self.seconds[..., None]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0, self.by_code / total, np.eye(len(CODES))[0])
        return np.asarray(share, dtype=np.float64)

    def __add__(self, other: Timed) -> Timed:
        return Timed(self.by_code + other.by_code)

    def __mul__(self, factor: float | Floats) -> Timed:
        """Scaled, by one factor or by one per point of the first axis."""
        return Timed(self.by_code * (factor if isinstance(factor, float | int) else np.asarray(factor)[..., None]))

    def along(self, points: int) -> Timed:
        """(A,) -> (A, points): the same at every point of a further axis."""
        return Timed(np.repeat(self.by_code[:, None], points, axis=1))

    def at_least(self, floor: Floats | float, code: int) -> Timed:
        """The same, topped up to `floor`; the top-up is known as `code`."""
        missing = np.maximum(np.asarray(floor) - self.seconds, 0.0)
        return self + Timed.of(missing, code)
