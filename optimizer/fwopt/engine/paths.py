"""Which code runs a layer's operators, and how it lays out the KV cache: torch anywhere, `fwopt_kernels` on a GPU.

Shapes: T tokens, N sequences, H query heads, K key/value heads, D head size, S block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt.engine import operators as op
from fwopt.engine.batch import Batch
from fwopt_kernels.moe_weights import Matrix

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary embedding, (positions, D / 2) each."""


@dataclass(frozen=True, slots=True)
class Attended:
    """What every layer's attention has in common."""

    scale: float
    window: int | None
    sinks: Tensor | None


class Step(Protocol):
    """One batch's positions and cache places, the same in every layer."""

    def store(self, qkv: Tensor, heads: int, cache: Tensor) -> None:
        """Rotate queries and keys of qkv (T, H + 2K, D) in place; write keys and values to the cache."""
        ...

    def decode(self, q: Tensor, cache: Tensor, group: int, how: Attended) -> Tensor:
        """Attention of decode group `group` over its cached tokens: q and result (N, H, D)."""
        ...

    def prefill(self, qkv: Tensor, heads: int, cache: Tensor, how: Attended) -> Tensor:
        """Causal attention of all prompt chunks, the last tokens of qkv as `store` left it: (their tokens, H, D)."""
        ...


class Path(Protocol):
    """The operators of one kind."""

    masked: bool
    """Whether attention needs masks."""

    def allocate(
        self, blocks: int, kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """One layer's cache, zeros."""
        ...

    def step(self, batch: Batch, cache: Tensor) -> Step: ...

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x in place; its RMSNorm."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor: ...

    def experts(
        self, x: Tensor, up: Matrix, down: Matrix, chosen: Tensor, weights: Tensor,
        biases: tuple[Tensor, Tensor] | None, limit: float,
    ) -> Tensor:  # fmt: skip
        """As `operators.experts`."""
        ...


class TorchPath:
    """Caches are (blocks, 2K, S, D), key heads before value heads: what a head reads lies together."""

    masked = True

    def __init__(self, angles: Angles) -> None:
        cosine, sine = angles
        self._cosine = torch.cat((cosine, cosine), 1)[:, None]
        self._sine = torch.cat((-sine, sine), 1)[:, None]

    def allocate(
        self, blocks: int, kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.zeros(blocks, 2 * kv_heads, block_size, head_dim, dtype=dtype, device=device)

    def step(self, batch: Batch, cache: Tensor) -> TorchStep:
        return TorchStep(batch, cache, self._cosine[batch.positions], self._sine[batch.positions])

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += x
        return F.rms_norm(residual, (residual.shape[-1],), weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return op.silu_mul(gate_up)

    def experts(
        self, x: Tensor, up: Matrix, down: Matrix, chosen: Tensor, weights: Tensor,
        biases: tuple[Tensor, Tensor] | None, limit: float,
    ) -> Tensor:  # fmt: skip
        return op.experts(x, up, down, chosen, weights, biases, limit)


class TorchStep:
    def __init__(self, batch: Batch, cache: Tensor, cosine: Tensor, sine: Tensor) -> None:
        heads, size = cache.shape[1], cache.shape[2]
        self._batch, self._angles = batch, (cosine, sine)
        self._written = op.token_rows(batch.slots, heads, size)
        self._decodes = [op.block_rows(d.table, heads) for d in batch.decodes]
        self._chunks = [None if c.whole else op.block_rows(c.table, heads) for c in batch.chunks]

    def store(self, qkv: Tensor, heads: int, cache: Tensor) -> None:
        op.rotate(qkv[:, : heads + cache.shape[1] // 2], *self._angles)
        op.write_cache(cache, qkv[:, heads:], self._written)

    def decode(self, q: Tensor, cache: Tensor, group: int, how: Attended) -> Tensor:
        mask = self._batch.decodes[group].masks[how.window]
        return op.decode_attention(q, cache, self._decodes[group], mask, how.scale, how.sinks)

    def prefill(self, qkv: Tensor, heads: int, cache: Tensor, how: Attended) -> Tensor:
        parts = []
        for chunk, held in zip(self._batch.chunks, self._chunks, strict=True):
            if held is None:
                kv = qkv[chunk.rows, heads:].transpose(0, 1).unsqueeze(0)
                keys, values = kv.chunk(2, dim=1)
            else:
                keys, values = (t[:, :, : chunk.context] for t in op.read_cache(cache, held, qkv.dtype))
            q, mask = qkv[chunk.rows, :heads], chunk.masks[how.window]
            parts.append(op.chunk_attention(q, keys, values, mask, how.scale, how.sinks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
