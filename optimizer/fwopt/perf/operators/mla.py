"""Multi-head latent attention beyond its projections (those are ordinary products, see `shapes.layer`).

Prompts expand the latent vectors and run ordinary causal attention (`prefill_shape`). Generation absorbs the expansion
into query and output and attends to the latent vectors themselves; two kinds of tables hold that:

* Modules (vLLM): the whole attention block is timed, but not as it is served: outside a compiled model its norms and
  rotary embedding run as some twenty small kernels, 40 us a layer whatever the heads. So only differences are used:
  what a longer context adds.
* Attention alone (SGLang).
"""

from __future__ import annotations

import numpy as np

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh
from fwopt.perf.grid import Floats
from fwopt.perf.operators import attention
from fwopt.perf.operators.gemm import GemmTable
from fwopt.perf.operators.groups import Key, group_rows, pivot
from fwopt.perf.store import Columns, Profile
from fwopt.perf.timed import Timed
from fwopt.spec.model import LatentAttention
from fwopt.spec.provenance import ASSUMED, BOUND, INTERPOLATED
from fwopt.targets.weights import latent_up

_MEASURED_LATENT = (512, 64)
"""Sizes of the latent vector and its rotary part in every table: DeepSeek-V3's, and Kimi K2's."""
_MODULE_DTYPE = {"bf16": "bf16", "fp8_block": "fp8_block", "fp8": "fp8_block", "int8": "fp8_block", "w4a16": "bf16"}
"""Dtype of the projections -> module rows whose differences are taken."""
_ABSORBED_UP_TO = 512
"""Tokens up to which the up-projection is absorbed (decode); longer steps expand keys and values (prefill)."""
_DECODE_KERNEL_S, _DECODE_SEQUENCE_S = 11.4e-6, 46e-9
"""Decode attention over a single cached token, and what each sequence adds: SGLang's rows of the same FlashAttention
kernel, 11.3-12.3 us for up to 32 sequences and 58.6 us for 1,024 on both GPUs (8 heads). What context adds is equal in
both engines' rows."""
_MOST_HEADS = 64
"""Heads that every prefill table holds; more of them take as many times longer."""


class _Surfaces:
    """seconds over (batch, second) by shape; heads between measured ones are blended."""

    def __init__(self, columns: Columns, second: str, keys: tuple[str, ...]) -> None:
        self._columns, self._second = columns, second
        self._rows = group_rows(columns, (*keys, "heads"))

    def surface(self, key: Key, heads: int) -> tuple[Floats, Floats, Floats]:
        """(batch, second, log seconds), NaN where nothing was measured."""
        measured = sorted(k[-1] for k in self._rows if k[:-1] == key)
        if not measured:
            raise UnmeasuredError(f"no latent-attention times for {'/'.join(map(str, key))} in this profile")
        nearest = min(measured, key=lambda h: (abs(np.log2(h / heads)), h))
        batch, second, seconds = pivot(self._columns, self._rows[(*key, nearest)], "batch", self._second)
        return batch, second, np.log(seconds * max(heads / nearest, 1.0))


def _over(batch: Floats, second: Floats, log_seconds: Floats, b: Floats, s: Floats) -> Floats:
    """Seconds at (b, s); beyond the measured corner the time grows with batch * second, as reading the cache does."""
    filled = mesh.fill(log_seconds - np.log(second)) + np.log(second)
    over = np.exp(mesh.along(mesh.along(filled, batch, b).T, second, s).T)
    result: Floats = over * np.maximum(b / batch[-1], 1.0)[:, None] * np.maximum(s / second[-1], 1.0)
    return result


def prefill_shape(a: LatentAttention, heads: int) -> tuple[attention.Shape, float]:
    """The ordinary attention that prompts run, and how many times its seconds count.

    Query and key are longer than value (192 and 128): the mean has as many operations and bytes. The cache's dtype
    does not matter, keys and values are expanded in bf16.
    """
    width = (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim) // 2
    some = min(heads, _MOST_HEADS)
    return attention.Shape("bf16", some, some, width), heads / some


class MlaTable:
    """What one profile knows of latent attention."""

    def __init__(self, profile: Profile, gemm: GemmTable) -> None:
        self._gemm = gemm
        self._modules = profile.has("mla_decode_module")
        operator, keys = (
            ("mla_decode_module", ("kv_dtype", "dtype")) if self._modules else ("mla_decode", ("kv_dtype",))
        )
        self._decode = _Surfaces(profile.columns(operator), "context", keys)
        self._bmm_columns = profile.columns("mla_bmm")
        self._bmm = group_rows(self._bmm_columns, ("dtype", "op", "heads"))

    def up(self, a: LatentAttention, heads: int, dtype: str, tokens: Floats) -> Timed:
        """From the latent vector to keys and values, by the step's tokens: absorbed, or one product."""
        up = latent_up(a, heads)
        expand = self._gemm.time(dtype, tokens, up.n, up.k).seconds
        return Timed.of(np.where(tokens <= _ABSORBED_UP_TO, self._absorb(heads, tokens), expand), INTERPOLATED)

    def _absorb(self, heads: int, tokens: Floats) -> Floats:
        total = np.zeros(len(tokens))
        for op in ("mla_gen_pre", "mla_gen_post"):
            measured = [k[2] for k in self._bmm if k[:2] == ("bf16", op)]
            nearest = min(measured, key=lambda h: (abs(np.log2(h / heads)), h))
            rows = self._bmm["bf16", op, nearest]
            rows = rows[np.argsort(self._bmm_columns["tokens"][rows])]
            axis = self._bmm_columns["tokens"][rows].astype(np.float64)
            log_s = np.log(self._bmm_columns["p50_s"][rows].astype(np.float64))
            total += np.exp(mesh.along(log_s, axis, tokens)) * max(heads / nearest, 1.0)
        return total

    def decode(
        self, a: LatentAttention, heads: int, dtype: str, kv_dtype: str, batch: Floats, context: Floats
    ) -> Timed:
        """(B,), (C,) -> (B, C) seconds of one layer."""
        code = INTERPOLATED if (a.kv_lora_rank, a.qk_rope_head_dim) == _MEASURED_LATENT else ASSUMED
        if not self._modules:
            return Timed.of(_over(*self._decode.surface((kv_dtype,), heads), batch, context), code)
        surface = self._decode.surface((kv_dtype, _MODULE_DTYPE[dtype]), heads)
        total = _over(*surface, batch, context)
        least = np.minimum.accumulate(total[:, ::-1], axis=1)[:, ::-1]
        rest = np.maximum(least - _over(*surface, batch, surface[1][:1]), 0.0)
        shortest = np.broadcast_to((_DECODE_KERNEL_S + batch * _DECODE_SEQUENCE_S)[:, None], rest.shape)
        return Timed.of(rest, code) + Timed.of(shortest, BOUND)


def open_mla(profile: Profile, gemm: GemmTable) -> MlaTable:
    """The profile's latent-attention tables, of whichever kind it has."""
    if profile.has("mla_bmm") and (profile.has("mla_decode_module") or profile.has("mla_decode")):
        return MlaTable(profile, gemm)
    raise UnmeasuredError(f"profile {profile.name} has no latent-attention (MLA) tables")
