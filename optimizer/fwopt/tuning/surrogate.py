"""What measured variants say of those not measured: a Gaussian process over a variant's constants and resources and
over the bucket's place, so that what is learnt at one batch size is known at its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_REACH = (0.3, 0.8)
"""Length scales tried, in the range of each feature."""
_OCTAVES = (1.5, 4.0)
"""Length scales tried between buckets, in factors of two of their size."""
_SCALES = (0.05**2, 0.2**2, 0.6**2)
"""Variances of log times tried: how much variants differ at all."""
_REFIT = 10
"""Measurements after which length scales and variance are fitted anew."""
_BOLD = 2.0
"""A process fitted to measurements that were chosen for being fast is too sure of itself: with 1 the search ended
early and missed the best of made-up landscapes by up to 9 %."""
_COMMON = 0.25
"""Part of what is learnt of a variant at one bucket that holds at all of them."""
_UNEXPLAINED = (0.008, 0.04, 0.2)
"""Part of a log time that nothing explains, tried: by so much two variants alike in everything still differ."""


@dataclass(frozen=True, slots=True)
class Belief:
    """Log times (B, V) of a family's variants at its buckets."""

    mean: Floats
    deviation: Floats


_Parameters = tuple[float, float, float, float]
"""(reach, octaves, scale, unexplained)"""


class Surrogate:
    """Of one family: V variants by F features, B buckets by A coordinates."""

    def __init__(self, features: Floats, places: Floats) -> None:
        span = np.ptp(features, axis=0)
        self._features = (features - features.min(axis=0)) / np.where(span > 0, span, 1.0)
        self._features = self._features[:, span > 0]
        self._places = places
        apart = np.sqrt(((places[:, None] - places[None, :]) ** 2).sum(-1))
        self._alike = {reach: self._likeness(reach) for reach in _REACH}
        self._near = {octaves: _COMMON + (1 - _COMMON) * np.exp(-apart / octaves) for octaves in _OCTAVES}
        self._fitted: _Parameters | None = None
        self._fitted_at = 0

    def _likeness(self, reach: float) -> Floats:
        """(V, V) of variants: their main effects, and all together, in equal parts."""
        squared = (self._features[:, None, :] - self._features[None, :, :]) ** 2
        count = max(squared.shape[-1], 1)
        each = np.exp(-0.5 * squared / reach**2).sum(-1) / count
        return np.asarray(0.5 * each + 0.5 * np.exp(-0.5 * squared.sum(-1) / (reach**2 * math.sqrt(count))))

    def beliefs(self, variant: NDArray[np.intp], bucket: NDArray[np.intp], log_time: Floats, noise: Floats) -> Belief:
        """Given measurements `log_time` (N,), relative to the bucket's floor, with relative `noise` (N,)."""
        mean = float(np.median(log_time))
        rest = log_time - mean
        if self._fitted is None or len(rest) >= self._fitted_at + _REFIT:
            tried = product(_REACH, _OCTAVES, _SCALES, _UNEXPLAINED)
            self._fitted = max(tried, key=lambda p: self._evidence(p, variant, bucket, rest, noise))
            self._fitted_at = len(rest)
        alike, near, scale, unexplained = self._of(self._fitted)
        own = np.diag(noise**2 + unexplained**2)
        lower = np.linalg.cholesky(scale * _between(alike, near, variant, bucket) + own)
        count = len(near)
        cross = scale * ((alike[:, variant] + 1.0)[None, :, :] * near[:, None, bucket])
        columns = cross.reshape(count * len(alike), len(rest)).T
        solved = np.linalg.solve(lower, np.column_stack([rest, columns]))
        projected = solved[:, 1:]
        variance = 2 * scale + unexplained**2 - (projected**2).sum(0)
        shape = (count, len(alike))
        return Belief(
            (mean + projected.T @ solved[:, 0]).reshape(shape), np.sqrt(np.maximum(variance, 1e-12)).reshape(shape)
        )

    def _of(self, parameters: _Parameters) -> tuple[Floats, Floats, float, float]:
        reach, octaves, scale, unexplained = parameters
        return self._alike[reach], self._near[octaves], scale, unexplained

    def _evidence(
        self, parameters: _Parameters, variant: NDArray[np.intp], bucket: NDArray[np.intp], rest: Floats, noise: Floats
    ) -> float:
        """Log marginal likelihood but for a constant."""
        alike, near, scale, unexplained = self._of(parameters)
        own = np.diag(noise**2 + unexplained**2)
        lower = np.linalg.cholesky(scale * _between(alike, near, variant, bucket) + own)
        solved = np.linalg.solve(lower, rest)
        evidence: float = -0.5 * float(solved @ solved) - float(np.log(np.diag(lower)).sum())
        return evidence


def _between(alike: Floats, near: Floats, variant: NDArray[np.intp], bucket: NDArray[np.intp]) -> Floats:
    """(N, N) of measurements, in units of the scale: what a variant is beside the others, and what a bucket is."""
    return np.asarray((alike[np.ix_(variant, variant)] + 1.0) * near[np.ix_(bucket, bucket)])


def expected_saving(belief: Belief, best_log: Floats) -> Floats:
    """(B, V) expected improvement of log time below the best known (B,), each deviation taken `_BOLD` times as wide."""
    deviation = _BOLD * belief.deviation
    gap = best_log[:, None] - belief.mean
    z = gap / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return np.asarray(gap * 0.5 * (1 + _erf(z / math.sqrt(2))) + deviation * density)


def _erf(x: Floats) -> Floats:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))
