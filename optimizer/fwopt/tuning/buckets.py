"""Where to tune: few shapes that stand for all that occur.

Of a single dimension the placement is exact: dynamic programming over contiguous groups of the ascending sizes, each
group standing under its weighted median in log2. What is minimised is the expected distance, in factors of two, between
the shape of a call and the one its variant was tuned at, weighted by the time that such calls take at least. Of several
dimensions (sequences, context) the first is placed by its margins, then the next within each of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLOSE = 0.1
"""Mean distance that is near enough, in factors of two: 7 %."""
MOST = 12
"""Groups of one dimension at most."""
_FINE = 48
"""Sizes an octave that are told apart."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A group of shapes and the one of them that stands for all."""

    point: tuple[int, ...]
    members: NDArray[np.intp]
    """Rows of the points that were placed."""


def place(points: Integers, weights: Floats, *, close: float = CLOSE, most: int = MOST) -> list[Bucket]:
    """Buckets of (P, axes) points, ascending."""
    if points.shape[1] == 1:
        return [Bucket((size,), members) for size, members in _along(points[:, 0], weights, close, most)]
    found = []
    for first, members in _along(points[:, 0], weights, close, most):
        inside = place(points[members, 1:], weights[members], close=close, most=max(2, most // 2))
        found += [Bucket((first, *bucket.point), members[bucket.members]) for bucket in inside]
    return found


def _along(sizes: Integers, weights: Floats, close: float, most: int) -> list[tuple[int, NDArray[np.intp]]]:
    """(size that stands for the group, indices of the group): as few groups as bring the mean distance to `close`."""
    fine = np.rint(np.log2(sizes) * _FINE).astype(np.int64)
    _, at = np.unique(fine, return_inverse=True)
    total = np.asarray(np.bincount(at, weights), dtype=np.float64)
    logs = np.asarray(np.bincount(at, weights * np.log2(sizes)) / np.maximum(total, 1e-300), dtype=np.float64)
    ends = _groups(logs, total, close, most)
    found = []
    for low, high in zip([0, *ends[:-1]], ends, strict=True):
        members = np.flatnonzero((at >= low) & (at < high))
        order = members[np.argsort(sizes[members], kind="stable")]
        gathered = np.cumsum(weights[order])
        median = order[int(np.searchsorted(gathered, gathered[-1] / 2))]
        found.append((int(sizes[median]), members))
    return found


def _groups(logs: Floats, weights: Floats, close: float, most: int) -> list[int]:
    """Ends of the groups of ascending `logs`: exact for each number of groups, tried from one."""
    count = len(logs)
    cost = _costs(logs, weights)
    least = cost[0, 1:].copy()
    froms: list[NDArray[np.intp]] = [np.zeros(count, dtype=np.intp)]
    while least[-1] > close * weights.sum() and len(froms) < min(most, count):
        through = np.concatenate(([np.inf], least[:-1]))[:, None] + cost[:, 1:]
        froms.append(through.argmin(axis=0))
        least = through.min(axis=0)
    ends = [count]
    for chosen in reversed(froms[1:]):
        ends.append(int(chosen[ends[-1] - 1]))
    return ends[::-1]


def _costs(logs: Floats, weights: Floats) -> Floats:
    """(n, n + 1): weighted distance of logs[i:j] to their weighted median; infinite for nothing."""
    count = len(logs)
    mass = np.concatenate(([0.0], np.cumsum(weights)))
    moment = np.concatenate(([0.0], np.cumsum(weights * logs)))
    cost = np.full((count, count + 1), np.inf)
    for i in range(count):
        j = np.arange(i + 1, count + 1)
        half = (mass[i] + mass[j]) / 2
        m = np.clip(np.searchsorted(mass, half, side="left") - 1, i, j - 1)
        below = logs[m] * (mass[m] - mass[i]) - (moment[m] - moment[i])
        above = (moment[j] - moment[m]) - logs[m] * (mass[j] - mass[m])
        cost[i, i + 1 :] = below + above
    return cost
