"""When a figure changed for good: change points of a history of sessions, with the commits that lie between.

Binary segmentation: the split that separates a stretch best (largest standardised difference of means, in log units) is
kept when at most one in a hundred random orders of the same values splits as well, and when it is larger than the
least change that matters; then both sides are searched. Where noise leaves the place uncertain, every split that fits
almost as well (likelihood ratio, 95 %) is in the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ALPHA = 0.01
ORDERS = 999
CHI2_95 = 3.841
"""95 % quantile of chi-squared with one degree of freedom."""
SHORTEST = 2
"""Sessions on either side of a change."""


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """Between sessions `first` - 1 and `last` the level changed by `change` (log units, as measured)."""

    first: int
    """First session that may be of the new level."""
    last: int
    """First session that surely is."""
    at: int
    """The likeliest first session of the new level."""
    change: float
    p: float


def change_points(values: Sequence[float], *, least: float, seed: int = 0) -> list[ChangePoint]:
    """In order. `values` above zero, oldest first; `least`: smallest change in log units."""
    y = np.log(np.asarray(values, np.float64))
    rng = np.random.Generator(np.random.PCG64(seed))
    found: list[ChangePoint] = []
    _search(y, 0, len(y), least, rng, found)
    return sorted(found, key=lambda c: c.at)


def _search(y: Floats, start: int, end: int, least: float, rng: np.random.Generator, found: list[ChangePoint]) -> None:
    part = y[start:end]
    if len(part) < 2 * SHORTEST:
        return
    gain = _gains(part[None, :])[0]
    at = int(gain.argmax())
    split = at + SHORTEST
    change = float(part[split:].mean() - part[:split].mean())
    orders = rng.permuted(np.tile(part, (ORDERS, 1)), axis=1)
    p = (1 + int((_gains(orders).max(axis=1) >= gain[at] * (1 - 1e-9)).sum())) / (1 + ORDERS)
    if gain[at] <= 0 or p > ALPHA or abs(change) <= least:
        return
    left = float(((part - part.mean()) ** 2).sum()) - gain
    noise = max(float(left[at]) / max(len(part) - 2, 1), 1e-18)
    near = np.flatnonzero(left <= left[at] + noise * CHI2_95) + SHORTEST
    found.append(ChangePoint(start + int(near[0]), start + int(near[-1]), start + split, change, p))
    _search(y, start, start + split, least, rng, found)
    _search(y, start + split, end, least, rng, found)


def _gains(rows: Floats) -> Floats:
    """Sum of squares that each split explains, per row; splits leave `SHORTEST` values on either side."""
    n = rows.shape[1]
    sizes = np.arange(SHORTEST, n - SHORTEST + 1)
    centred = rows - rows.mean(axis=1, keepdims=True)
    sums = np.cumsum(centred, axis=1)[:, sizes - 1]
    return np.asarray(sums**2 * (1 / sizes + 1 / (n - sizes)), np.float64)
