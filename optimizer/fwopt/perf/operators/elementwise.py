"""Bandwidth-bound kernels that were timed: time by rows, between the sizes that were measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fwopt.perf.grid import Floats
from fwopt.perf.operators.groups import group_rows
from fwopt.perf.store import Columns
from fwopt.perf.timed import Timed
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_SHAPE = ("kernel", "columns", "heads", "kv_heads", "head_dim")
_FAR = 4.0
"""Up to so many times the largest size, time grows with the rows; beyond, that is assumed."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One bandwidth-bound kernel; sizes that it does not have are 0."""

    name: str
    columns: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0


class ElementwiseTable:
    """Kernels of one profile."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._rows = {Kernel(*key): rows for key, rows in group_rows(columns, _SHAPE).items()}

    def time(self, kernel: Kernel, rows: Floats) -> Timed | None:
        """Seconds at each count of rows; None where this kernel was not timed."""
        if kernel not in self._rows:
            return None
        at = self._rows[kernel]
        order = at[np.argsort(self._columns["rows"][at])]
        axis, seconds = (self._columns[name][order].astype(np.float64) for name in ("rows", "p50_s"))
        found = np.exp(np.interp(np.log(rows), np.log(axis), np.log(seconds)))
        found *= np.maximum(rows / axis[-1], 1.0)
        codes = np.where(rows > _FAR * axis[-1], ASSUMED, np.where(np.isin(rows, axis), MEASURED, INTERPOLATED))
        return Timed.of(found, codes)
