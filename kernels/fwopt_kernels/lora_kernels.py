"""The two kernels of `lora.py`: a row times its adapter's A, in parts of K; what they sum to times B, added to y.

Both take blocks of rows that share an adapter (`moe_routing.py`, an adapter being an expert and each row's one choice).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels import tiling
from fwopt_kernels.rounding import dot, to_bf16


@triton.jit
def shrink(
    x, a, parts, rows, adapters, padded, tokens, inputs, x_stride, adapter_stride, a_stride,
    RANK: tl.constexpr, EVEN: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """parts (SPLIT_K, tokens, RANK), by token: float32 sums over a part of K; of all of K bfloat16.

    A program BLOCK_M rows by BLOCK_R of the rank by its part. EVEN: BLOCK_K divides `inputs`.
    """
    panels = tl.cdiv(RANK, BLOCK_R)
    block, panel = tl.program_id(0) // panels, tl.program_id(0) % panels
    if block * BLOCK_M >= tl.load(padded):
        return
    adapter = tl.load(adapters + block).to(tl.int64)
    token = tl.load(rows + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = token < tokens
    r, k = panel * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    first, last = tiling.blocks(inputs, BLOCK_K, SPLIT_K)
    x += (token * x_stride)[:, None] + (first * BLOCK_K + k)[None, :]
    a += adapter * adapter_stride + (tl.where(r < RANK, r, 0).to(tl.int64) * a_stride)[:, None]
    a += (first * BLOCK_K + k)[None, :]
    sums = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for at in range(first, last):
        if EVEN:
            some_x, some_a = tl.load(x, mask=real[:, None], other=0.0), tl.load(a)
        else:
            left = k < inputs - at * BLOCK_K
            some_x = tl.load(x, mask=real[:, None] & left[None, :], other=0.0)
            some_a = tl.load(a, mask=left[None, :], other=0.0)
        sums = dot(some_x, tl.trans(some_a), sums)
        x += BLOCK_K
        a += BLOCK_K
    part = tl.program_id(1).to(tl.int64) * tokens
    to = parts + ((part + token) * RANK)[:, None] + r[None, :]
    mask = real[:, None] & (r < RANK)[None, :]
    if SPLIT_K > 1:
        tl.store(to, sums, mask=mask)
    else:
        tl.store(to, to_bf16(sums), mask=mask)


@triton.jit
def expand(
    parts, b, scales, y, rows, adapters, padded, tokens, outputs, r_blocks, adapter_stride, b_units,
    y_stride,
    RANK: tl.constexpr, UNIT: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program BLOCK_M rows by BLOCK_N outputs, which joins the parts as it loads them.

    UNIT: of the distance between rows of B, a constant, so that those of rank 8 and 24 are loaded by 16 bytes. Of ranks
    beyond a block, one block is on its way while another is multiplied: of all parts, more would fill shared memory.
    """
    panels = tl.cdiv(outputs, BLOCK_N)
    block, panel = tl.program_id(0) // panels, tl.program_id(0) % panels
    if block * BLOCK_M >= tl.load(padded):
        return
    adapter = tl.load(adapters + block).to(tl.int64)
    token = tl.load(rows + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = token < tokens
    n = panel * BLOCK_N + tl.arange(0, BLOCK_N)
    y += (token * y_stride)[:, None] + n[None, :]
    written = real[:, None] & (n < outputs)[None, :]
    before = tl.load(y, mask=written, other=0.0)
    b += adapter * adapter_stride + (tl.where(n < outputs, n, 0).to(tl.int64) * (b_units * UNIT))[:, None]
    parts += (token * RANK)[:, None]
    apart = tl.full((), RANK, tl.int64) * tokens  # one token is a constant, which has no type to change
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for r_block in tl.range(0, r_blocks, num_stages=2):
        r = r_block * BLOCK_R + tl.arange(0, BLOCK_R)
        known = (r < RANK)[None, :]
        wanted = real[:, None] & known
        hidden = tl.load(parts + r[None, :], mask=wanted, other=0.0)
        for part in tl.static_range(1, SPLIT_K):
            hidden += tl.load(parts + part * apart + r[None, :], mask=wanted, other=0.0)
        if SPLIT_K > 1:
            hidden = to_bf16(hidden)
        total = dot(hidden, tl.trans(tl.load(b + r[None, :], mask=known, other=0.0)), total)
    added = before.to(tl.float32) + total * tl.load(scales + adapter)
    tl.store(y, to_bf16(added), mask=written)
