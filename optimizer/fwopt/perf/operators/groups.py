"""Rows of a table by shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.perf.grid import Floats
from fwopt.perf.store import Columns

Key = tuple[Any, ...]


def group_rows(columns: Columns, keys: tuple[str, ...]) -> dict[Key, NDArray[np.intp]]:
    """Row indices of every distinct combination of `keys`."""
    arrays = [columns[key] for key in keys]
    rows = len(arrays[0])
    order = np.arange(rows)
    for _ in range(2):
        changes = np.ones(rows, dtype=np.bool_)
        changes[1:] = np.logical_or.reduce([a[order][1:] != a[order][:-1] for a in arrays])
        starts = np.flatnonzero(changes)
        found = list(zip(*(a[order][starts].tolist() for a in arrays), strict=True))
        if len(set(found)) == len(found):
            break
        order = np.lexsort(arrays[::-1])
    return dict(zip(found, np.split(order, starts[1:]), strict=True))


def pivot(columns: Columns, rows: NDArray[np.intp], first: str, second: str) -> tuple[Floats, Floats, Floats]:
    """(axis, axis, seconds) of some rows over two columns; NaN where nothing was measured."""
    x, at_x = np.unique(columns[first][rows], return_inverse=True)
    y, at_y = np.unique(columns[second][rows], return_inverse=True)
    seconds = np.full((len(x), len(y)), np.nan)
    seconds[at_x, at_y] = columns["p50_s"][rows]
    return x.astype(np.float64), y.astype(np.float64), seconds
