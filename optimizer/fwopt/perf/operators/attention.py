"""Softmax attention over a KV cache: decode by (batch, context), prefill by prompt length.

A shape that was not measured takes the utilisation of the nearest one on its own bound: between two head counts the
two are blended; a window that was not measured uses full attention's utilisation on the window's bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh, roofline
from fwopt.perf.grid import Floats
from fwopt.perf.operators.groups import Key, group_rows, pivot
from fwopt.perf.store import Columns
from fwopt.perf.timed import Timed
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_KEYS = ("kv_dtype", "heads", "kv_heads", "head_dim", "window")
_FAR = 1.0
"""Beyond a factor of two (in log2, summed over heads, KV heads and head size) a transfer is assumed."""
FULL_STEP_TOKENS = 8192
"""Prompt tokens of a typical full step: short prompts are timed together with others, as they run."""


_BEYOND = np.asarray([131072.0, 1048576.0])
"""Contexts added to the measured ones."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Attention of one layer as one GPU sees it; window 0 attends to everything."""

    kv_dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0

    @property
    def key(self) -> Key:
        return (self.kv_dtype, self.heads, self.kv_heads, self.head_dim, self.window)

    def distance(self, other: Shape) -> float:
        pairs = ((self.heads, other.heads), (self.kv_heads, other.kv_heads), (self.head_dim, other.head_dim))
        return sum(abs(float(np.log2(a / b))) for a, b in pairs)


def sources(shape: Shape, known: list[Shape]) -> tuple[list[tuple[Shape, float]], int]:
    """Measured shapes that stand for `shape` with their weights, and the code of what results."""
    known = [s for s in known if s.kv_dtype == shape.kv_dtype]
    if not known:
        raise UnmeasuredError(f"no attention times with a {shape.kv_dtype} KV cache in this profile")
    if shape in known:
        return [(shape, 1.0)], MEASURED
    windows = {s.window for s in known if s.head_dim == shape.head_dim}
    window = shape.window if shape.window in windows else 0
    same = [s for s in known if (s.window, s.head_dim, s.kv_heads) == (window, shape.head_dim, shape.kv_heads)]
    below = max((s for s in same if s.heads <= shape.heads), key=lambda s: s.heads, default=None)
    above = min((s for s in same if s.heads >= shape.heads), key=lambda s: s.heads, default=None)
    if below and above:
        span = np.log(above.heads / below.heads)
        weight = float(np.log(shape.heads / below.heads) / span) if span > 0 else 0.0
        return [(below, 1 - weight), (above, weight)], INTERPOLATED
    reachable = [s for s in known if s.window == window] or known
    nearest = min(reachable, key=lambda s: (shape.distance(s), s.key))
    return [(nearest, 1.0)], INTERPOLATED if shape.distance(nearest) <= _FAR else ASSUMED


def _extended(seconds: Floats, bound: Floats) -> Floats:
    """Fill (B, C) seconds beyond the last measured context: what is read on top is read at the best measured rate."""
    best = np.nanmax(bound / seconds)
    last = seconds.shape[1] - 1 - np.argmax(np.isfinite(seconds)[:, ::-1], axis=1)[:, None]
    base = np.take_along_axis(seconds, last, axis=1) - np.take_along_axis(bound, last, axis=1) / best
    extended = mesh.fill(seconds)
    return np.where(np.arange(seconds.shape[1]) > last, np.maximum(base, 0.0) + bound / best, extended)


class DecodeTable:
    """One query a sequence over its cached context."""

    def __init__(self, columns: Columns, device: DeviceSpec) -> None:
        self._columns, self._device = columns, device
        self._rows = group_rows(columns, _KEYS)
        self._shapes = [Shape(*key) for key in self._rows]
        self._built: dict[Shape, tuple[Floats, Floats, Floats, Floats]] = {}

    def _surface(self, shape: Shape) -> tuple[Floats, Floats, Floats, Floats]:
        if shape not in self._built:
            batch, context, seconds = pivot(self._columns, self._rows[shape.key], "batch", "context")
            beyond = _BEYOND[context[-1] < _BEYOND]
            context = np.concatenate([context, beyond])
            seconds = np.concatenate([seconds, np.full((len(batch), len(beyond)), np.nan)], axis=1)
            bound = self._bound(shape, batch[:, None], context)
            utilisation = np.log(bound) - np.log(_extended(seconds, bound))
            self._built[shape] = batch, context, utilisation, np.isfinite(seconds)
        return self._built[shape]

    def _bound(self, shape: Shape, batch: Floats, context: Floats) -> Floats:
        s = shape
        return roofline.decode_attention(
            self._device, s.kv_dtype, batch, context, s.heads, s.kv_heads, s.head_dim, s.window
        )

    def time(self, shape: Shape, batch: Floats, context: Floats) -> Timed:
        """(B,), (C,) -> (B, C) seconds of one layer."""
        found, code = sources(shape, self._shapes)
        log_utilisation = np.zeros((len(batch), len(context)))
        exact = np.zeros((len(batch), len(context)), dtype=np.bool_)
        for source, weight in found:
            axis_b, axis_c, utilisation, measured = self._surface(source)
            over_batch = mesh.along(utilisation, axis_b, batch)
            log_utilisation += weight * mesh.along(over_batch.T, axis_c, context).T
            if code == MEASURED:
                at_b = np.clip(np.searchsorted(axis_b, batch), 0, len(axis_b) - 1)
                at_c = np.clip(np.searchsorted(axis_c, context), 0, len(axis_c) - 1)
                hit = (axis_b[at_b] == batch)[:, None] & (axis_c[at_c] == context)
                exact = hit & measured[np.ix_(at_b, at_c)]
        seconds = self._bound(shape, batch[:, None], context) / np.exp(log_utilisation)
        return Timed.of(seconds, np.where(exact, MEASURED, max(code, INTERPOLATED)))


class PrefillTable:
    """Causal attention of whole prompts, without prefix."""

    def __init__(self, columns: Columns, device: DeviceSpec) -> None:
        self._columns, self._device = columns, device
        self._rows: dict[Key, tuple[str, np.ndarray]] = {}
        for (dtype, *key), rows in group_rows(columns, ("dtype", *_KEYS)).items():
            if tuple(key) not in self._rows or dtype == "bf16":
                self._rows[tuple(key)] = dtype, rows
        self._shapes = [Shape(*key) for key in self._rows]
        self._built: dict[Shape, tuple[Floats, Floats, float]] = {}

    def _curve(self, shape: Shape) -> tuple[Floats, Floats, float]:
        """(lengths, log utilisation per prompt in a full step, seconds that the shortest prompt adds)."""
        if shape not in self._built:
            _, rows = self._rows[shape.key]
            batch, length, seconds = pivot(self._columns, rows, "batch", "length")
            fits = np.isfinite(seconds) & ((batch[:, None] * length <= FULL_STEP_TOKENS) | (batch[:, None] == batch[0]))
            last = len(batch) - 1 - np.argmax(fits[::-1], axis=0)
            each = seconds[last, np.arange(len(length))] / batch[last]
            known = np.isfinite(each)
            length, each, last = length[known], each[known], last[known]
            bound = self._bound(shape, batch[last], length) / batch[last]
            self._built[shape] = length, np.log(bound) - np.log(each), float(each[0])
        return self._built[shape]

    def _bound(self, shape: Shape, batch: Floats | float, length: Floats) -> Floats:
        s = shape
        return roofline.prefill_attention(
            self._device, np.asarray(batch), length, s.heads, s.kv_heads, s.head_dim, s.window
        )

    def time(self, shape: Shape, length: Floats) -> Timed:
        """(L,) prompt lengths -> seconds a prompt adds to a full step of one layer; 0 tokens take 0 s."""
        found, code = sources(shape, self._shapes)
        some = np.maximum(length, 1.0)
        log_utilisation = np.zeros(len(length))
        exact = np.zeros(len(length), dtype=np.bool_)
        for source, weight in found:
            axis, utilisation, _ = self._curve(source)
            log_utilisation += weight * mesh.along(utilisation, axis, some)
            exact = np.isin(length, axis)
        seconds = np.where(length > 0, self._bound(shape, 1.0, some) / np.exp(log_utilisation), 0.0)
        seconds = np.maximum.accumulate(seconds)
        codes = np.where(exact, MEASURED, INTERPOLATED) if code == MEASURED else code
        return Timed.of(seconds, codes)

    def floor_s(self, shape: Shape) -> float:
        """What the shortest prompt adds to a full step of one layer."""
        found, _ = sources(shape, self._shapes)
        return sum(weight * self._curve(source)[2] for source, weight in found)
