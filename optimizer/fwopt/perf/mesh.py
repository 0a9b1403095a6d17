"""Interpolation on logarithmic meshes of utilisation (bound / time).

The logarithm of the utilisation is interpolated linearly between the logarithms of the coordinates: exact for
times that are constant, proportional to the bound, or any power law in between. Below the mesh the edge's time
holds (launch-bound), above it the edge's utilisation (saturated).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fwopt.perf.grid import Floats


def bracket(axis: Floats, value: Floats | float) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Indices below and above `value` and the weight of the upper one, in log coordinates, clamped to the axis."""
    value = np.clip(np.asarray(value, dtype=np.float64), axis[0], axis[-1])
    upper = np.clip(np.searchsorted(axis, value, side="left"), 0, len(axis) - 1)
    lower = np.where(axis[upper] == value, upper, np.maximum(upper - 1, 0))
    span = np.log(axis[upper]) - np.log(axis[lower])
    weight = np.where(span > 0, (np.log(value) - np.log(axis[lower])) / np.where(span > 0, span, 1.0), 0.0)
    return lower, upper, weight


def along(log_values: Floats, axis: Floats, value: Floats) -> Floats:
    """Interpolate (A,) or (A, ...) values given on `axis` at `value` (V,) -> (V, ...)."""
    lower, upper, weight = bracket(axis, value)
    weight = weight.reshape(weight.shape + (1,) * (log_values.ndim - 1))
    result: Floats = log_values[lower] * (1 - weight) + log_values[upper] * weight
    return result


def fill(values: Floats) -> Floats:
    """Replace NaN along the last axis by the nearest finite value below, then above; all-NaN rows stay NaN."""
    return _forward(_forward(values)[..., ::-1])[..., ::-1]


def _forward(values: Floats) -> Floats:
    index = np.where(np.isfinite(values), np.arange(values.shape[-1]), -1)
    last = np.maximum.accumulate(index, axis=-1)
    taken = np.take_along_axis(values, np.maximum(last, 0), axis=-1)
    return np.where(last >= 0, taken, np.nan)


def fill_between(values: Floats, log_axis: Floats) -> Floats:
    """Replace NaN along axis 0 by interpolation between finite neighbours (edges: the nearest)."""
    flat = values.reshape(values.shape[0], -1).copy()
    holes = ~np.isfinite(flat)
    for column in np.flatnonzero(holes.any(0) & ~holes.all(0)):
        known = ~holes[:, column]
        flat[:, column] = np.interp(log_axis, log_axis[known], flat[known, column])
    return flat.reshape(values.shape)
