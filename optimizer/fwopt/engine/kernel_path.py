"""The engine on `fwopt_kernels`: fused norms, rotary embedding with the cache write, SiLU, attention, experts.

Caches are (2, blocks, S, K, D), as vLLM's. In bfloat16, with a cache in it or in FP8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt.engine.batch import Batch, ChunkInput
from fwopt.engine.paths import Angles, Attended
from fwopt_kernels.choice import Choices
from fwopt_kernels.decode_attention import decode_attention
from fwopt_kernels.fused_moe import fused_moe
from fwopt_kernels.moe_weights import Matrix
from fwopt_kernels.prefill_attention import prefill_attention
from fwopt_kernels.rms_norm import add_rms_norm
from fwopt_kernels.rope_cache import rope_cache
from fwopt_kernels.row_formats import Rows
from fwopt_kernels.silu_mul import silu_mul

SPREAD = 3
"""Longest over shortest context of the batches that `fwopt kernels tune` times."""


class KernelPath:
    masked = False

    def __init__(self, angles: Angles, choices: Choices) -> None:
        self._table, self._choices = torch.cat(angles, 1), choices
        self._scales = torch.ones(2, device=self._table.device)

    def allocate(
        self, blocks: int, kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.zeros(2, blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device)

    def step(self, batch: Batch, cache: Tensor) -> KernelStep:
        return KernelStep(batch, self._table, self._scales, self._choices)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(residual)
        rows, columns = x.shape
        chosen = self._choices.best("rms_norm", "bf16", rows=rows, columns=columns)
        add_rms_norm(x, residual, weight, Rows("bf16", out, None), eps=eps, variant=chosen)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, columns = len(gate_up), gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, columns)
        chosen = self._choices.best("silu_mul", "bf16", rows=rows, columns=columns)
        silu_mul(gate_up, Rows("bf16", out, None), variant=chosen)
        return out

    def experts(
        self, x: Tensor, up: Matrix, down: Matrix, chosen: Tensor, weights: Tensor,
        biases: tuple[Tensor, Tensor] | None, limit: float,
    ) -> Tensor:  # fmt: skip
        out, (tokens, top_k) = torch.empty_like(x), chosen.shape
        variant = self._choices.best(
            "fused_moe", up.format, tokens=tokens, experts=len(up.values), top_k=top_k, hidden=x.shape[1],
            intermediate=down.inputs,
        )  # fmt: skip
        fused_moe(
            x, chosen.to(torch.int32), weights.float(), up, down, out, biases=biases,
            limit=None if biases is None else limit, variant=variant,
        )  # fmt: skip
        return out


class KernelStep:
    def __init__(self, batch: Batch, table: Tensor, scales: Tensor, choices: Choices) -> None:
        self._batch, self._table, self._scales, self._choices = batch, table, scales, choices
        self._decodes = [
            (d.table.to(torch.int32), (batch.positions[d.rows] + 1).to(torch.int32)) for d in batch.decodes
        ]
        self._chunks = _together(batch.chunks) if batch.chunks else None

    def store(self, qkv: Tensor, heads: int, cache: Tensor) -> None:
        values = heads + cache.shape[3]
        query, key, value = qkv[:, :heads], qkv[:, heads:values], qkv[:, values:]
        chosen = self._choices.best(
            "rope_cache", _format(cache), tokens=len(qkv), heads=heads, kv_heads=cache.shape[3],
            head_dim=cache.shape[4], rotary_dim=self._table.shape[1], block_size=cache.shape[2],
        )  # fmt: skip
        batch = self._batch
        rope_cache(query, key, value, cache, batch.slots, batch.positions, self._table, self._scales, variant=chosen)

    def decode(self, q: Tensor, cache: Tensor, group: int, how: Attended) -> Tensor:
        """The variant is that of the longest context that the table could hold: lengths are on the device."""
        table, lengths = self._decodes[group]
        out, longest = q.new_empty(q.shape), table.shape[1] * cache.shape[2]
        longest = min(longest, how.window or longest)
        chosen = self._choices.best(
            "decode_attention", _format(cache), sequences=len(q), heads=q.shape[1], kv_heads=cache.shape[3],
            head_dim=q.shape[2], block_size=cache.shape[2], shortest=max(1, longest // SPREAD), context=longest,
        )  # fmt: skip
        decode_attention(
            q, cache, table, lengths, self._scales, out, softmax_scale=how.scale, window=how.window, sinks=how.sinks,
            variant=chosen,
        )  # fmt: skip
        return out

    def prefill(self, qkv: Tensor, heads: int, cache: Tensor, how: Attended) -> Tensor:
        """The variant is that of the chunks' means."""
        assert self._chunks is not None
        c = self._chunks
        q = qkv[c.first :, :heads]
        out, sequences = q.new_empty(q.shape), len(c.lengths)
        context = c.context if how.window is None else min(c.context, len(q) // sequences + how.window)
        context = _rounded(context)
        chosen = self._choices.best(
            "prefill_attention", _format(cache), sequences=sequences, heads=heads, kv_heads=cache.shape[3],
            head_dim=q.shape[2], block_size=cache.shape[2], tokens=_rounded(len(q) // sequences), shortest=context,
            context=context,
        )  # fmt: skip
        prefill_attention(
            q, cache, c.table, c.lengths, c.starts, self._scales, out, softmax_scale=how.scale, window=how.window,
            sinks=how.sinks, variant=chosen,
        )  # fmt: skip
        return out


@dataclass(frozen=True, slots=True)
class _Chunks:
    """All prompt chunks of a step, as the kernel takes them."""

    first: int
    """Their first token in the batch."""
    table: Tensor
    lengths: Tensor
    starts: Tensor
    context: int
    """In the mean."""


def _together(chunks: list[ChunkInput]) -> _Chunks:
    first, contexts = chunks[0].rows.start, [chunk.context for chunk in chunks]
    most, device = max(chunk.table.shape[1] for chunk in chunks), chunks[0].table.device
    tables = [F.pad(chunk.table, (0, most - chunk.table.shape[1])) for chunk in chunks]
    starts = [0, *(chunk.rows.stop - first for chunk in chunks)]
    lengths, begin = (torch.tensor(n, dtype=torch.int32, device=device) for n in (contexts, starts))
    return _Chunks(first, torch.cat(tables).to(torch.int32), lengths, begin, sum(contexts) // len(contexts))


def _rounded(size: int) -> int:
    """To its first three bits: what was found for a shape is kept, and prompts have too many."""
    drop = max(0, size.bit_length() - 3)
    return size >> drop << drop


def _format(cache: Tensor) -> str:
    return "bf16" if cache.dtype == torch.bfloat16 else "fp8"
