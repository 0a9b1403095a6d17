"""Linear attention (Gated DeltaNet): short convolution and recurrence, without its projections.

Generation costs by the batch alone, whatever the context; a prompt costs by its tokens. A shape that was not measured
takes the nearest one's utilisation on its own bound.
"""

from __future__ import annotations

import numpy as np

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh, roofline
from fwopt.perf.grid import Floats
from fwopt.perf.operators.attention import FULL_STEP_TOKENS
from fwopt.perf.operators.groups import Key, group_rows, pivot
from fwopt.perf.store import Columns
from fwopt.perf.timed import Timed
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import LinearAttention
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_KEYS = ("phase", "key_heads", "value_heads", "key_dim", "value_dim", "conv")
_FAR = 1.0
"""Beyond a factor of two (in log2, summed over heads and head sizes) a transfer is assumed."""
_MEASURED_STATE_BYTES = 2.0
"""The rows keep their states in bf16."""
_STATE_BYTES = {"fp32": 4.0, "bf16": 2.0}


class LinearTable:
    """Measured recurrences of one profile."""

    def __init__(self, columns: Columns, device: DeviceSpec) -> None:
        self._columns, self._device = columns, device
        self._rows = group_rows(columns, _KEYS)

    def _source(self, phase: str, a: LinearAttention, tp: int) -> tuple[Key, int]:
        """The measured shape that stands for this one (after its phase), and the code of what results."""
        wanted = (a.key_heads // tp, a.value_heads // tp, a.key_head_dim, a.value_head_dim, a.conv_tokens)
        known = [key[1:] for key in self._rows if key[0] == phase]
        if not known:
            raise UnmeasuredError(f"no {phase} times of linear attention in this profile")

        def distance(key: Key) -> float:
            return sum(abs(float(np.log2(x / y))) for x, y in zip(key[:4], wanted[:4], strict=True))

        nearest = min(known, key=lambda key: (distance(key), key))
        code = MEASURED if nearest == wanted else INTERPOLATED if distance(nearest) <= _FAR else ASSUMED
        return nearest, code

    def decode(self, a: LinearAttention, tp: int, batch: Floats) -> Timed:
        """(B,) sequences -> seconds of one layer; never faster than moving the state in the model's own dtype."""
        source, code = self._source("generation", a, tp)
        axis, _, seconds = pivot(self._columns, self._rows[("generation", *source)], "batch", "length")
        heads, key_dim, value_dim = source[1:4]
        args = (key_dim, value_dim, _MEASURED_STATE_BYTES)
        utilisation = np.log(roofline.linear_decode(self._device, axis, heads, *args)) - np.log(seconds[:, 0])
        own = (a.value_heads // tp, a.key_head_dim, a.value_head_dim)
        bound = roofline.linear_decode(self._device, batch, *own, _MEASURED_STATE_BYTES)
        found = np.maximum(bound / np.exp(mesh.along(utilisation, axis, batch)), seconds.min())
        exact = np.isin(batch, axis) if code == MEASURED else np.zeros(len(batch), dtype=np.bool_)
        least = roofline.linear_decode(self._device, batch, *own, _STATE_BYTES[a.state_dtype])
        codes = np.where(exact & (found >= least), MEASURED, max(code, INTERPOLATED))
        return Timed.of(np.maximum(found, least), codes)

    def _curve(self, source: Key) -> tuple[Floats, Floats]:
        """(lengths, seconds that each prompt of that length adds to a step of `FULL_STEP_TOKENS`)."""
        batch, length, seconds = pivot(self._columns, self._rows[("context", *source)], "batch", "length")
        fits = np.isfinite(seconds) & ((batch[:, None] * length <= FULL_STEP_TOKENS) | (batch[:, None] == batch[0]))
        last = len(batch) - 1 - np.argmax(fits[::-1], axis=0)
        each = seconds[last, np.arange(len(length))] / batch[last]
        known = np.isfinite(each)
        return length[known], each[known]

    def prefill(self, a: LinearAttention, tp: int, length: Floats) -> Timed:
        """(L,) prompt lengths -> seconds a prompt adds to a full step of one layer; 0 tokens take 0 s."""
        source, code = self._source("context", a, tp)
        axis, each = self._curve(source)
        some = np.maximum(length, 1.0)
        utilisation = np.log(roofline.linear_prefill(self._device, axis, *source[1:4])) - np.log(each)
        bound = roofline.linear_prefill(self._device, some, a.value_heads // tp, a.key_head_dim, a.value_head_dim)
        seconds = np.where(length > 0, bound / np.exp(mesh.along(utilisation, axis, some)), 0.0)
        codes = np.where(np.isin(length, axis), MEASURED, INTERPOLATED) if code == MEASURED else code
        return Timed.of(np.maximum.accumulate(seconds), codes)

    def floor_s(self, a: LinearAttention, tp: int) -> float:
        """What the shortest prompt adds to a full step of one layer."""
        source, _ = self._source("context", a, tp)
        return float(self._curve(source)[1][0])
