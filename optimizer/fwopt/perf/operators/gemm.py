"""Dense matrix products: (m, k) x (k, n), interpolated over all three on the measured mesh.

n and k below the mesh take its edge (a launch takes what it takes); n or k above it keep the edge's utilisation: an LM
head of 152,064 columns runs like one of 65,536. Up to four times the edge that counts as interpolated, beyond as
assumed. Dtypes without a table take another's utilisation (`priors.yaml: substitutes.dense`) and are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh, roofline
from fwopt.perf.grid import Floats
from fwopt.perf.priors import Substitute
from fwopt.perf.store import Columns
from fwopt.perf.timed import Timed
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_FAR = 4.0
_SATURATED_ROWS = 512.0
"""Rows from which a bf16 product is bound by arithmetic on every device known."""
_DECODE_ROWS = 16.0


@dataclass(frozen=True, slots=True)
class _Mesh:
    """One dtype's products."""

    m: Floats
    n: Floats
    k: Floats
    log_utilisation: Floats
    """(m, n, k), without holes"""
    measured: NDArray[np.bool_]


class GemmTable:
    """Measured products of one profile."""

    def __init__(self, columns: Columns, device: DeviceSpec, substitutes: dict[str, Substitute]) -> None:
        self._device, self._substitutes = device, substitutes
        self._meshes = {str(d): self._mesh(columns, str(d)) for d in np.unique(columns["dtype"])}

    def _mesh(self, columns: Columns, dtype: str) -> _Mesh:
        rows = columns["dtype"] == dtype
        axes, place = zip(*(np.unique(columns[c][rows], return_inverse=True) for c in "mnk"), strict=True)
        m, n, k = (axis.astype(np.float64) for axis in axes)
        seconds = np.full((len(m), len(n), len(k)), np.nan)
        seconds[place] = columns["p50_s"][rows]
        bound = roofline.gemm(self._device, dtype, m[:, None, None], n[:, None], k)
        utilisation = mesh.fill_between(np.log(bound) - np.log(seconds), np.log(m))
        return _Mesh(m, n, k, mesh.fill(utilisation), np.isfinite(seconds))

    @property
    def rows(self) -> Floats:
        """Row counts that any product was measured with, ascending."""
        return np.unique(np.concatenate([table.m for table in self._meshes.values()]))

    def time(self, dtype: str, m: Floats, n: int, k: int) -> Timed:
        """(M,) row counts -> times of (m, k) x (k, n)."""
        m = np.asarray(m, dtype=np.float64)
        if dtype in self._meshes:
            return self._measured(dtype, m, n, k)
        if dtype not in self._substitutes:
            raise UnmeasuredError(f"no {dtype} matrix products in this profile and no prior for them")
        return Timed.of(self._substituted(dtype, m, n, k), ASSUMED)

    def _measured(self, dtype: str, m: Floats, n: float, k: float) -> Timed:
        table = self._meshes[dtype]
        utilisation = table.log_utilisation
        n, k = max(n, table.n[0]), max(k, table.k[0])
        (n0, n1, wn), (k0, k1, wk) = mesh.bracket(table.n, n), mesh.bracket(table.k, k)
        curve = (utilisation[:, n0, k0] * (1 - wk) + utilisation[:, n0, k1] * wk) * (1 - wn)
        curve = curve + (utilisation[:, n1, k0] * (1 - wk) + utilisation[:, n1, k1] * wk) * wn
        seconds = roofline.gemm(self._device, dtype, m, n, k) / np.exp(mesh.along(curve, table.m, m))
        if max(n / table.n[-1], k / table.k[-1]) > _FAR:
            return Timed.of(seconds, ASSUMED)
        on_mesh = (n == table.n[n0]) & (k == table.k[k0])
        at = np.clip(np.searchsorted(table.m, m), 0, len(table.m) - 1)
        exact = on_mesh & (table.m[at] == m) & table.measured[at, n0, k0]
        return Timed.of(seconds, np.where(exact, MEASURED, INTERPOLATED))

    def _substituted(self, dtype: str, m: Floats, n: int, k: int) -> Floats:
        rule = self._substitutes[dtype]
        if rule.table not in self._meshes:
            raise UnmeasuredError(f"the prior for {dtype} needs {rule.table} matrix products, which have no table")
        ratio = roofline.WEIGHT_BYTES[dtype] / roofline.WEIGHT_BYTES[rule.table]
        if ratio > 0.9:
            seconds = self._measured(rule.table, m, n, k).seconds
            memory, arithmetic = roofline.gemm_parts(self._device, dtype, m, n, k)
            factor = np.where(memory >= arithmetic, rule.memory_factor, rule.compute_factor)
            return np.asarray(seconds / factor)
        # Fewer weight bytes: as fast as a product of the table's dtype that moves as many, until arithmetic binds.
        moving = self._measured(rule.table, np.minimum(m, _DECODE_ROWS), n, k * ratio).seconds / rule.memory_factor
        saturated = np.maximum(m, _SATURATED_ROWS)
        full = self._measured(rule.table, saturated, n, k).seconds * (m / saturated) / rule.compute_factor
        return np.maximum(moving, full)
