"""Multi-head latent attention. Two kinds of tables exist and they must not be added up.

* Modules (vLLM): the whole attention block is timed, projections included. What depends on the step's tokens only is
  the decode module at its shortest context (up to its largest batch) and the prefill module of many short prompts
  (beyond); the rest of each row is attention. Token part and attention thus add up to the measured module again.
* Separate (SGLang): attention alone; projections are ordinary products, absorption is `mla_bmm`.
"""

from __future__ import annotations

import numpy as np

from fwopt.errors import UnmeasuredError
from fwopt.perf import mesh, roofline
from fwopt.perf.grid import Floats
from fwopt.perf.operators.gemm import GemmTable
from fwopt.perf.operators.groups import Key, group_rows, pivot
from fwopt.perf.store import Columns, Profile
from fwopt.perf.timed import Timed
from fwopt.spec.model import LatentAttention
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_MODULE_SHAPE = (7168, 1536, 512, 128, 64, 128)
"""hidden, q_lora, kv_lora, nope, rope and value sizes of DeepSeek-V3, which the module tables were taken with."""
_SHORT_PROMPT = 64
"""Prompts this short cost what their tokens cost: attention among them does not show."""
_VISIBLE = 0.1
"""A difference of two timings below this share of either is noise; shorter prompts keep the cost per query-key pair."""
_MODULE_DTYPE = {"bf16": "bf16", "fp8_block": "fp8_block", "fp8": "fp8_block", "int8": "fp8_block", "w4a16": "bf16"}
"""Dtype of the projections -> module rows that stand for it; `assumed` where the two differ."""


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


class MlaModules:
    """vLLM: whole modules."""

    def __init__(self, profile: Profile) -> None:
        keys = ("kv_dtype", "dtype")
        self._decode = _Surfaces(profile.columns("mla_decode_module"), "context", keys)
        self._prefill = _Surfaces(profile.columns("mla_prefill_module"), "length", keys)

    def _code(self, attention: LatentAttention, hidden: int, dtype: str) -> int:
        a = attention
        shape = (hidden, a.q_lora_rank, a.kv_lora_rank, a.qk_nope_head_dim, a.qk_rope_head_dim, a.v_head_dim)
        return INTERPOLATED if shape == _MODULE_SHAPE and _MODULE_DTYPE[dtype] == dtype else ASSUMED

    def _scale(self, attention: LatentAttention, hidden: int) -> float:
        """Weights of this module over those of the one that was measured, per head."""
        return _module_weights(attention, hidden) / _module_weights_measured(attention.heads)

    def token(self, a: LatentAttention, hidden: int, heads: int, dtype: str, kv_dtype: str, tokens: Floats) -> Timed:
        key = (kv_dtype, _MODULE_DTYPE[dtype])
        batch, _, log_s = self._decode.surface(key, heads)
        axis, seconds = batch.tolist(), np.exp(log_s[:, 0]).tolist()
        many, length, log_p = self._prefill.surface(key, heads)
        for wanted in (_SHORT_PROMPT, 2 * _SHORT_PROMPT, 4 * _SHORT_PROMPT):
            at = int(np.searchsorted(length, wanted))
            for row, count in enumerate(many):
                total = count * wanted
                if total > axis[-1] and np.isfinite(log_p[row, at]) and length[at] == wanted:
                    axis.append(total)
                    seconds.append(float(np.exp(log_p[row, at])))
        curve = np.log(np.maximum.accumulate(seconds))
        knots = np.asarray(axis)
        result = np.exp(mesh.along(curve, knots, tokens)) * np.maximum(tokens / knots[-1], 1.0)
        code = self._code(a, hidden, dtype)
        exact = np.isin(tokens, knots) & (code == INTERPOLATED)
        return Timed.of(result * self._scale(a, hidden), np.where(exact, MEASURED, code))

    def decode(
        self, a: LatentAttention, hidden: int, heads: int, dtype: str, kv_dtype: str, batch: Floats, context: Floats
    ) -> Timed:
        surface = self._decode.surface((kv_dtype, _MODULE_DTYPE[dtype]), heads)
        total = _over(*surface, batch, context)
        least = np.minimum.accumulate(total[:, ::-1], axis=1)[:, ::-1]
        rest = np.maximum(least - _over(*surface, batch, surface[1][:1]), 0.0)
        return Timed.of(rest, self._code(a, hidden, dtype))

    def prefill(self, a: LatentAttention, hidden: int, heads: int, dtype: str, kv_dtype: str, length: Floats) -> Timed:
        some = np.maximum(length, 1.0)
        _, axis, log_s = self._prefill.surface((kv_dtype, _MODULE_DTYPE[dtype]), heads)
        tokens = self.token(a, hidden, heads, dtype, kv_dtype, axis).seconds / self._scale(a, hidden)
        rest = np.exp(log_s[0]) - tokens
        hidden_below = int(np.flatnonzero(np.append(rest[:-1] <= _VISIBLE * tokens[:-1], False)).max(initial=-1)) + 1
        per_pair = np.maximum(rest, 0.0) / roofline.attended(axis, 0)
        per_pair[:hidden_below] = per_pair[hidden_below]
        seconds = np.interp(some, axis, per_pair) * roofline.attended(some, 0)
        return Timed.of(np.where(length > 0, np.maximum.accumulate(seconds), 0.0), self._code(a, hidden, dtype))


def _module_weights(a: LatentAttention, hidden: int) -> float:
    query = (a.qk_nope_head_dim + a.qk_rope_head_dim) * a.heads
    down = hidden * a.q_lora_rank + a.q_lora_rank * query if a.q_lora_rank else hidden * query
    latent = hidden * (a.kv_lora_rank + a.qk_rope_head_dim)
    up = a.kv_lora_rank * a.heads * (a.qk_nope_head_dim + a.v_head_dim)
    return float(down + latent + up + a.heads * a.v_head_dim * hidden)


def _module_weights_measured(heads: int) -> float:
    hidden, q_lora, kv_lora, nope, rope, value = _MODULE_SHAPE
    measured = LatentAttention(
        heads=heads,
        q_lora_rank=q_lora,
        kv_lora_rank=kv_lora,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
    )
    return _module_weights(measured, hidden)


class MlaSeparate:
    """SGLang: attention, absorption and projections each by itself."""

    _ABSORBED_UP_TO = 512
    """Tokens up to which the up-projection is absorbed (decode); longer steps expand keys and values (prefill)."""

    def __init__(self, profile: Profile, gemm: GemmTable) -> None:
        self._gemm = gemm
        self._decode = _Surfaces(profile.columns("mla_decode"), "context", ("kv_dtype",))
        self._prefill = _Surfaces(profile.columns("mla_prefill"), "length", ("kv_dtype",))
        self._bmm_columns = profile.columns("mla_bmm")
        self._bmm = group_rows(self._bmm_columns, ("dtype", "op", "heads"))

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

    def token(self, a: LatentAttention, hidden: int, heads: int, dtype: str, kv_dtype: str, tokens: Floats) -> Timed:
        query = heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
        latent = a.kv_lora_rank + a.qk_rope_head_dim
        total = self._gemm.time(dtype, tokens, hidden, heads * a.v_head_dim)
        if a.q_lora_rank:
            total += self._gemm.time(dtype, tokens, a.q_lora_rank + latent, hidden)
            total += self._gemm.time(dtype, tokens, query, a.q_lora_rank)
        else:
            total += self._gemm.time(dtype, tokens, query + latent, hidden)
        expand = self._gemm.time(dtype, tokens, heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank).seconds
        absorb = self._absorb(heads, tokens)
        return total + Timed.of(np.where(tokens <= self._ABSORBED_UP_TO, absorb, expand), INTERPOLATED)

    def decode(
        self, a: LatentAttention, hidden: int, heads: int, dtype: str, kv_dtype: str, batch: Floats, context: Floats
    ) -> Timed:
        surface = self._decode.surface((kv_dtype,), heads)
        return Timed.of(_over(*surface, batch, context), INTERPOLATED)

    def prefill(self, a: LatentAttention, hidden: int, heads: int, dtype: str, kv_dtype: str, length: Floats) -> Timed:
        some = np.maximum(length, 1.0)
        _, axis, log_s = self._prefill.surface((kv_dtype,), heads)
        per_pair = np.exp(log_s[0]) / roofline.attended(axis, 0)
        seconds = np.exp(np.interp(np.log(some), np.log(axis), np.log(per_pair))) * roofline.attended(some, 0)
        return Timed.of(np.where(length > 0, np.maximum.accumulate(seconds), 0.0), INTERPOLATED)


MlaTables = MlaModules | MlaSeparate


def open_mla(profile: Profile, gemm: GemmTable) -> MlaTables:
    """The kind of latent-attention tables that the profile has."""
    if profile.has("mla_decode_module") and profile.has("mla_prefill_module"):
        return MlaModules(profile)
    if profile.has("mla_decode") and profile.has("mla_prefill") and profile.has("mla_bmm"):
        return MlaSeparate(profile, gemm)
    raise UnmeasuredError(f"profile {profile.name} has no latent-attention (MLA) tables")
