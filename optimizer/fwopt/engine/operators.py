"""Every operator that a step runs, in torch: the one place where a faster kernel can take over.

Shapes: T tokens, N sequences, H query heads, K key/value heads, D head size, B blocks a sequence, S block size.
A layer's cache is (blocks, 2K, S, D): key heads, then value heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt_kernels.moe_weights import Matrix

GATHERED_BYTES = 1 << 28
"""Most keys and values that are copied together for decode attention."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotary embedding of (T, heads, D), in place; `sine` carries the signs of the two halves."""
    rolled = x.roll(x.shape[-1] // 2, -1)
    torch.addcmul(x * cosine, rolled, sine, out=x)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def clamped_swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """gpt-oss: (up + 1) * gate * sigmoid(1.702 gate), both clamped."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def token_rows(slots: Tensor, heads: int, block_size: int) -> Tensor:
    """Where tokens go in a cache seen as rows of D: one row a head (2K of them), for slots block * S + offset."""
    first = slots // block_size * (heads * block_size) + slots % block_size
    return (first[:, None] + torch.arange(heads, device=slots.device) * block_size).view(-1)


def block_rows(table: Tensor, heads: int) -> Tensor:
    """Which pieces (S, D) of a cache the sequences of `table` hold: (N, 2K, B), head by head."""
    return table[:, None, :] * heads + torch.arange(heads, device=table.device)[:, None]


def write_cache(cache: Tensor, kv: Tensor, rows: Tensor) -> None:
    """Store (T, 2K, D) at `token_rows` of a layer's cache."""
    flat, values = cache.view(-1, cache.shape[3]), kv.reshape(-1, cache.shape[3])
    if cache.element_size() == 1:  # float8 has no index_copy
        flat, values = flat.view(torch.uint8), values.to(cache.dtype).view(torch.uint8)
    flat.index_copy_(0, rows, values)


def read_cache(cache: Tensor, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values (N, K, B * S, D) at `block_rows`, contiguous head by head."""
    source = cache.view(torch.uint8) if cache.element_size() == 1 else cache
    found = source.view(-1, *cache.shape[2:]).index_select(0, rows.reshape(-1))
    if found.dtype != dtype:
        found = found.view(cache.dtype).to(dtype)
    found = found.view(rows.shape[0], rows.shape[1], -1, cache.shape[3])
    heads = rows.shape[1] // 2
    return found[:, :heads], found[:, heads:]


def decode_attention(
    q: Tensor, cache: Tensor, rows: Tensor, mask: Tensor, scale: float, sinks: Tensor | None
) -> Tensor:
    """One query a sequence, (N, H, D), over its cached tokens; `mask` is (N, 1, 1, B * S), added to the scores.

    The query heads that share a key/value head stand side by side as if they were queries: no key is copied.
    """
    n, heads, size = q.shape
    most = max(1, GATHERED_BYTES // (rows.shape[2] * cache[0].numel() * q.element_size()))
    if n > most:
        parts = [
            decode_attention(q[i : i + most], cache, rows[i : i + most], mask[i : i + most], scale, sinks)
            for i in range(0, n, most)
        ]
        return torch.cat(parts)
    keys, values = read_cache(cache, rows, q.dtype)
    grouped = q.view(n, keys.shape[1], heads // keys.shape[1], size)
    if sinks is not None:
        out = _with_sinks(grouped, keys, values, mask, scale, sinks.view(1, keys.shape[1], -1, 1))
    else:
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(n, heads, size)


def chunk_attention(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None
) -> Tensor:
    """Queries (C, H, D) of one prompt chunk over keys and values (1, K, L, D); `mask` (C, L), None: causal, C = L."""
    heads = q.shape[1]
    query = q.transpose(0, 1).unsqueeze(0)
    if sinks is not None:
        groups = heads // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        assert mask is not None
        out = _with_sinks(query, keys, values, mask, scale, sinks.view(1, heads, 1, 1))
    else:
        out = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=heads != keys.shape[1]
        )
    return out.squeeze(0).transpose(0, 1)


def _with_sinks(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, sinks: Tensor) -> Tensor:
    """Softmax over the scores and one more logit a head, which has no value."""
    scores = (q @ keys.transpose(-1, -2)) * scale + mask
    sink = sinks.expand(*scores.shape[:-1], 1)
    probabilities = torch.softmax(torch.cat((scores, sink), dim=-1).float(), dim=-1).to(q.dtype)
    return probabilities[..., :-1] @ values


def experts(
    x: Tensor, up: Matrix, down: Matrix, chosen: Tensor, weights: Tensor,
    biases: tuple[Tensor, Tensor] | None, limit: float,
) -> Tensor:  # fmt: skip
    """Each token's chosen experts, weighted and summed. x (T, M); up (E, 2I, M), down (E, M, I); chosen (T, k)."""
    per_token = chosen.shape[1]
    order = chosen.reshape(-1).argsort(stable=True)
    expert = chosen.reshape(-1)[order]
    token = order // per_token
    ends = torch.searchsorted(expert, torch.arange(len(up.values), device=x.device), right=True, out_int32=True)
    hidden = grouped_product(x[token], up, ends)
    hidden = silu_mul(hidden) if biases is None else clamped_swiglu(hidden + biases[0][expert], limit)
    out = grouped_product(hidden, down, ends)
    if biases is not None:
        out = out + biases[1][expert]
    out = out * weights.reshape(-1)[order].unsqueeze(1)
    return torch.zeros_like(x).index_add_(0, token, out.to(x.dtype))


def grouped_product(x: Tensor, weights: Matrix, ends: Tensor) -> Tensor:
    """Rows ends[e-1]:ends[e] of x times weights[e].T; on a GPU one kernel that a CUDA graph can hold, for which
    quantized experts are all unpacked."""
    if x.is_cuda and x.dtype == torch.bfloat16:
        whole = weights.values
        if weights.scale is not None:
            whole = torch.stack([unpacked(weights, e, x.dtype) for e in range(len(whole))])
        return torch._grouped_mm(x, whole.transpose(1, 2), offs=ends)
    out = x.new_empty(len(x), weights.outputs)
    start = 0
    for e, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], unpacked(weights, e, x.dtype).t(), out=out[start:end])
        start = end
    return out


def unpacked(weights: Matrix, expert: int, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs), rounded once."""
    if weights.scale is None:
        return weights.values[expert]
    return weights.dense(expert, torch.float32).to(dtype)
