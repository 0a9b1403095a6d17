"""The engine on `fwopt_kernels`: fused norms, rotary embedding with the cache write, SiLU, paged decode attention.

Caches are (2, blocks, S, K, D), as vLLM's; prompt chunks attend in torch. In bfloat16, with a cache in it or in FP8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fwopt.engine.batch import Batch
from fwopt.engine.paths import Angles, Attended
from fwopt_kernels.decode_attention import decode_attention
from fwopt_kernels.rms_norm import add_rms_norm
from fwopt_kernels.rope_cache import rope_cache
from fwopt_kernels.row_formats import Rows
from fwopt_kernels.silu_mul import silu_mul


class KernelPath:
    masked = False

    def __init__(self, angles: Angles) -> None:
        self._table = torch.cat(angles, 1)
        self._scales = torch.ones(2, device=self._table.device)

    def allocate(
        self, blocks: int, kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.zeros(2, blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device)

    def step(self, batch: Batch, cache: Tensor) -> KernelStep:
        return KernelStep(batch, self._table, self._scales)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(residual)
        add_rms_norm(x, residual, weight, Rows("bf16", out, None), eps=eps)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        silu_mul(gate_up, Rows("bf16", out, None))
        return out


class KernelStep:
    def __init__(self, batch: Batch, table: Tensor, scales: Tensor) -> None:
        self._batch, self._table, self._scales = batch, table, scales
        self._decodes = [
            (d.table.to(torch.int32), (batch.positions[d.rows] + 1).to(torch.int32)) for d in batch.decodes
        ]

    def store(self, qkv: Tensor, heads: int, cache: Tensor) -> None:
        values = heads + cache.shape[3]
        query, key, value = qkv[:, :heads], qkv[:, heads:values], qkv[:, values:]
        rope_cache(query, key, value, cache, self._batch.slots, self._batch.positions, self._table, self._scales)

    def decode(self, q: Tensor, cache: Tensor, group: int, how: Attended) -> Tensor:
        assert how.sinks is None
        table, lengths = self._decodes[group]
        out = q.new_empty(q.shape)
        decode_attention(q, cache, table, lengths, self._scales, out, softmax_scale=how.scale, window=how.window)
        return out

    def history(self, cache: Tensor, chunk: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        table = self._batch.chunks[chunk].table
        assert table is not None
        source = cache.view(torch.uint8) if cache.element_size() == 1 else cache
        found = source.index_select(1, table[0]).view(cache.dtype).to(dtype)
        keys, values = found.flatten(1, 2).transpose(1, 2).unsqueeze(1)
        return keys, values
