"""Expert feed-forward of one rank: time over the tokens of the whole expert-parallel group.

A shape that was not measured takes the utilisation of the nearest measured one on its own roofline; a dtype without
any near shape takes another's (`priors.yaml: substitutes.moe`), assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh, roofline
from fwopt.perf.grid import Floats
from fwopt.perf.operators.groups import group_rows
from fwopt.perf.priors import Substitute
from fwopt.perf.store import Columns
from fwopt.perf.timed import Timed
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_KEYS = ("dtype", "hidden", "inter", "topk", "experts", "tp", "ep", "routing")
_NEAR = 1.0
"""Summed log2 distance up to which another shape's utilisation counts as interpolated."""
_REACH = 2.0
"""Beyond this distance another dtype's table of the same shape is the better stand-in."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer's experts and how they are spread over ranks."""

    dtype: str
    hidden: int
    inter: int
    """Width of one whole expert."""
    topk: int
    experts: int
    tp: int = 1
    ep: int = 1

    def distance(self, other: Shape) -> float:
        """Summed |log2| of the per-rank width, the width of the model, the experts held and those asked for."""
        pairs = (
            (self.hidden, other.hidden),
            (self.inter / self.tp, other.inter / other.tp),
            (self.topk, other.topk),
            (self.experts / self.ep, other.experts / other.ep),
            (self.ep, other.ep),
        )
        return sum(abs(float(np.log2(a / b))) for a, b in pairs)


class MoeTable:
    """Measured expert layers of one profile under one routing distribution."""

    def __init__(self, columns: Columns, device: DeviceSpec, routing: str, substitutes: dict[str, Substitute]) -> None:
        self._columns, self._device, self._substitutes = columns, device, substitutes
        groups = group_rows(columns, _KEYS)
        self._rows = {Shape(*key[:-1]): rows for key, rows in groups.items() if key[-1] == routing}
        if not self._rows:
            raise UnmeasuredError(f"no expert times with routing {routing} in this profile")

    def _parts(self, s: Shape, tokens: Floats) -> tuple[Floats, Floats]:
        return roofline.moe_parts(self._device, s.dtype, tokens, s.hidden, s.inter, s.experts, s.topk, s.tp, s.ep)

    def _utilisation(self, shape: Shape, tokens: Floats) -> tuple[Floats, NDArray[np.bool_], float]:
        rows = self._rows[shape]
        order = np.argsort(self._columns["tokens"][rows])
        axis = self._columns["tokens"][rows][order].astype(np.float64)
        seconds = self._columns["p50_s"][rows][order].astype(np.float64)
        log_utilisation = np.log(np.maximum(*self._parts(shape, axis))) - np.log(seconds)
        return np.exp(mesh.along(log_utilisation, axis, tokens)), np.isin(tokens, axis), float(seconds.min())

    def _nearest(self, shape: Shape, dtype: str) -> tuple[Shape | None, float]:
        known = [(shape.distance(s), s) for s in self._rows if s.dtype == dtype]
        if not known:
            return None, np.inf
        distance, nearest = min(known, key=lambda pair: (pair[0], str(pair[1])))
        return nearest, distance

    def time(self, shape: Shape, tokens: Floats) -> Timed:
        """(T,) tokens of the whole group -> seconds of one rank."""
        tokens = np.asarray(tokens, dtype=np.float64)
        memory, arithmetic = self._parts(shape, tokens)
        if shape in self._rows:
            utilisation, exact, _ = self._utilisation(shape, tokens)
            return Timed.of(np.maximum(memory, arithmetic) / utilisation, np.where(exact, MEASURED, INTERPOLATED))
        nearest, distance = self._nearest(shape, shape.dtype)
        rule = self._substitutes.get(shape.dtype)
        if rule is not None and distance > _REACH:
            other, far = self._nearest(shape, rule.table)
            if other is not None and far < distance:
                utilisation, _, least = self._utilisation(other, tokens)
                seconds = np.maximum(
                    memory / (utilisation * rule.memory_factor), arithmetic / (utilisation * rule.compute_factor)
                )
                return Timed.of(np.maximum(seconds, least), ASSUMED)
        if nearest is None:
            raise UnmeasuredError(f"no {shape.dtype} expert times in this profile and no prior for them")
        utilisation, _, least = self._utilisation(nearest, tokens)
        seconds = np.maximum(np.maximum(memory, arithmetic) / utilisation, least)
        return Timed.of(seconds, INTERPOLATED if distance <= _NEAR else ASSUMED)
