"""Communication between the GPUs of one node: seconds by elements (16-bit) moved."""

from __future__ import annotations

import numpy as np

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh
from fwopt.perf.grid import Floats
from fwopt.perf.operators.groups import Key, group_rows
from fwopt.perf.store import Columns
from fwopt.perf.timed import Timed
from fwopt.spec.provenance import INTERPOLATED, MEASURED


class CollectiveTable:
    """Log-log curves of time over elements, one a (kind, number of GPUs).

    Below the smallest message its time holds; above the largest, its rate. A number of GPUs that was not measured takes
    the next larger one.
    """

    def __init__(self, columns: Columns, kind: str) -> None:
        self._curves: dict[Key, tuple[Floats, Floats]] = {}
        for key, rows in group_rows(columns, (kind, "gpus")).items():
            order = rows[np.argsort(columns["elements"][rows])]
            self._curves[key] = columns["elements"][order].astype(np.float64), columns["p50_s"][order].astype(float)

    def time(self, kind: str, gpus: int, elements: Floats) -> Timed:
        """(E,) elements of the whole message -> seconds."""
        elements = np.asarray(elements, dtype=np.float64)
        if gpus == 1:
            return Timed.zero(elements.shape)
        measured = sorted(g for k, g in self._curves if k == kind and g >= gpus)
        if not measured:
            raise UnmeasuredError(f"no {kind} times for {gpus} GPUs in this profile")
        axis, seconds = self._curves[kind, measured[0]]
        result = np.exp(mesh.along(np.log(seconds), axis, elements)) * np.maximum(elements / axis[-1], 1.0)
        exact = np.isin(elements, axis) & (measured[0] == gpus)
        return Timed.of(result, np.where(exact, MEASURED, INTERPOLATED))
