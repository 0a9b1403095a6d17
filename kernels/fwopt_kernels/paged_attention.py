"""What attention over the paged KV cache shares: its pages, its products' operands, its logits.

The cache is as `rope_cache` and vLLM's `reshape_and_cache_flash` write it: (2, blocks, block_size, kv_heads, head_dim),
keys then values; an e4m3 cache holds `value / scale`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import row_formats
from fwopt_kernels.contract import Launch
from fwopt_kernels.rounding import to_bf16

LOG2_E = tl.constexpr(1.4426950408889634)
STRIDES = {f"{name}_stride": "i64" if name == "plane" else "i32" for name in
           ("query", "out", "plane", "block", "slot", "head")}  # fmt: skip
"""Arguments of both kernels that are multiples of 16, with the types that most caches need."""


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


@triton.jit
def sink_weight(sinks, head, top):
    """What the sinks of heads add to sums of weights that count in 2**top; infinite where it dwarfs them."""
    return tl.exp2(tl.maximum(tl.load(sinks + head).to(tl.float32), -1e30) * LOG2_E - top)


def with_sinks(launches: tuple[Launch, ...], *, only: bool, also: bool) -> tuple[Launch, ...]:
    """The last kernel is the one that joins sinks: with them (bfloat16) in its place, or as one more."""
    if not only and not also:
        return launches
    *before, last = launches
    constants = {name: value for name, value in last.constants.items() if name != "sinks"}
    joined = replace(last, signature={**last.signature, "sinks": "*bf16"}, constants=constants, label="sinks")
    return (*before, joined) if only else (*launches, joined)


def require_readable(query: Tensor, out: Tensor, cache: Tensor, sinks: Tensor | None, **rows: Tensor) -> None:
    """Heads packed, rows packed, query heads in whole groups, a sink a query head."""
    head_dim, heads, kv_heads = query.shape[2], query.shape[1], cache.shape[3]
    for name, tensor in (("query", query), ("out", out)):
        if tensor.stride()[-2:] != (head_dim, 1):
            raise ValueError(f"{name}: heads must be packed, strides {(head_dim, 1)}, got {tensor.stride()[-2:]}")
    row_formats.require_packed(cache=cache, **rows)
    if sinks is not None:
        if sinks.shape != (heads,) or not sinks.is_contiguous():
            raise ValueError(f"sinks must be one packed number a query head, ({heads},); got {tuple(sinks.shape)}")
        if sinks.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"sinks must be float32 or bfloat16, got {sinks.dtype}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} KV heads")
