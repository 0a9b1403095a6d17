"""What attention over the paged KV cache shares: its pages, its products' operands, its logits.

The cache is as `rope_cache` and vLLM's `reshape_and_cache_flash` write it: (2, blocks, block_size, kv_heads, head_dim),
keys then values; an e4m3 cache holds `value / scale`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import row_formats
from fwopt_kernels.rounding import to_bf16

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def operand(x, BF16: tl.constexpr):
    """float32 -> the type that products are taken in: float16 holds every e4m3 number, and probabilities better."""
    if BF16:
        return to_bf16(x)
    else:
        return x.to(tl.float16)


@triton.jit
def pages(table, start, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Block of each of BLOCK_N positions; one number where they all lie in one page."""
    if PAGE % BLOCK_N == 0:
        return tl.load(table + start // PAGE, mask=start < end, other=0).to(tl.int64)
    else:
        at = start + tl.arange(0, BLOCK_N)
        return tl.load(table + at // PAGE, mask=at < end, other=0).to(tl.int64)


@triton.jit
def capped(s, SOFT_CAP: tl.constexpr):
    """Logits in powers of two."""
    if SOFT_CAP > 0:
        s = SOFT_CAP * (1.0 - 2.0 / (tl.exp(s * (2.0 / SOFT_CAP)) + 1.0))
    return s * LOG2_E


def require_readable(query: Tensor, out: Tensor, cache: Tensor, **rows: Tensor) -> None:
    """Heads packed, rows packed, query heads in whole groups."""
    head_dim, heads, kv_heads = query.shape[2], query.shape[1], cache.shape[3]
    for name, tensor in (("query", query), ("out", out)):
        if tensor.stride()[-2:] != (head_dim, 1):
            raise ValueError(f"{name}: heads must be packed, strides {(head_dim, 1)}, got {tensor.stride()[-2:]}")
    row_formats.require_packed(cache=cache, **rows)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} KV heads")
