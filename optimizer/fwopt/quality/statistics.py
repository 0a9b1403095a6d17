"""Means over tokens with an interval: tokens of a window depend on each other, so whole windows are drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fwopt.spec.quality import Estimate

DRAWS = 2000
CONFIDENCE = 0.95
_LEAST_BLOCKS = 6
"""Fewer windows have no interval: it cannot reach beyond them, and all n lie on one side of the truth once in 2^(n-1)
times, which is more often than 5 % where n is below 6."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Mean over the tokens of some windows, windows drawn with replacement; bias-corrected and accelerated (Efron
    1987), since divergences are skewed; expanded by Student's t, since windows may be few (Hesterberg 2015)."""

    seed: int
    draws: int = DRAWS

    def mean(self, values: NDArray[np.float64], window: NDArray[np.int64]) -> Estimate:
        """`window`: which one each value belongs to."""
        _, block = np.unique(window, return_inverse=True)
        sums: NDArray[np.float64] = np.bincount(block, values).astype(np.float64)
        counts: NDArray[np.int64] = np.bincount(block).astype(np.int64)
        blocks = len(sums)
        value = float(sums.sum() / counts.sum())
        if blocks < _LEAST_BLOCKS:
            return Estimate(value=value, low=None, high=None)
        if not np.any(values != values[0]):
            return Estimate(value=value, low=value, high=value)
        chosen = np.random.default_rng(self.seed).integers(0, blocks, (self.draws, blocks))
        drawn = np.sort(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
        low, high = (float(np.quantile(drawn, q)) for q in self._quantiles(drawn, value, sums, counts))
        return Estimate(value=value, low=low, high=high)

    def _quantiles(
        self, drawn: NDArray[np.float64], value: float, sums: NDArray[np.float64], counts: NDArray[np.int64]
    ) -> tuple[float, float]:
        normal, edge = NormalDist(), 0.5 / len(drawn)
        below = (np.searchsorted(drawn, value, "left") + np.searchsorted(drawn, value, "right")) / 2 / len(drawn)
        bias = normal.inv_cdf(float(np.clip(below, edge, 1 - edge)))
        without = (sums.sum() - sums) / (counts.sum() - counts)
        pull = without.mean() - without
        spread = float((pull**2).sum())
        acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
        student = float(special.stdtrit(len(sums) - 1, (1 + CONFIDENCE) / 2))
        tail = student * (len(sums) / (len(sums) - 1)) ** 0.5

        def corrected(z: float) -> float:
            return normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

        return corrected(-tail), corrected(tail)
