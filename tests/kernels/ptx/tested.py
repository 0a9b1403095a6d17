"""Kernels that do nothing but call one function of `fwopt_kernels` on each number."""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels import decode_attention, moe_gemm, rounding
from fwopt_kernels import w4_dequant as dequant


@triton.jit
def nibbles(q, low, high, MX: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    first, second = dequant.e2m1(tl.load(q + at)) if MX else dequant._nibbles(tl.load(q + at))
    tl.store(low + at, first)
    tl.store(high + at, second)


@triton.jit
def fma(a, b, c, out, COUNT: tl.constexpr):
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    tl.store(out + at, dequant.fma(tl.load(a + at), tl.load(b + at), tl.load(c + at)))


@triton.jit
def codes(q, out, MX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    tile, inside = tl.arange(0, BLOCK_N // 16), tl.arange(0, BLOCK_K * 8)
    found = dequant.codes_of(tl.load(q + tile[:, None] * (BLOCK_K * 8) + inside[None, :]), MX, BLOCK_N, BLOCK_K)
    tl.store(out + tl.arange(0, BLOCK_N)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :], found)


@triton.jit
def words(packed, out, MX: tl.constexpr, BYTES: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Scales, or with BYTES zero points, or with MX its scales."""
    row: tl.constexpr = BLOCK_N // 4 if BYTES else BLOCK_N // 2
    group, column = tl.arange(0, GROUPS), tl.arange(0, row)
    read = tl.load(packed + group[:, None] * row + column[None, :])
    found = dequant.bytes_of(read, MX, GROUPS, BLOCK_N) if BYTES else dequant.scales_of(read, GROUPS, BLOCK_N)
    tl.store(out + tl.arange(0, BLOCK_N)[:, None] * GROUPS + group[None, :], found)


@triton.jit
def mxfp4(q, scales, out, inner, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    tile, inside, at = tl.arange(0, BLOCK_N // 16), tl.arange(0, BLOCK_K * 8), tl.arange(0, BLOCK_N // 4)
    read = tl.load(q + tile[:, None] * (BLOCK_K * 8) + inside[None, :])
    found = dequant.mxfp4(read, scales, BLOCK_N // 4, 0, inner, at, at >= 0, BLOCK_N, BLOCK_K)
    tl.store(out + tl.arange(0, BLOCK_N)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :], found)


@triton.jit
def rounded(x, out, TO: tl.constexpr, COUNT: tl.constexpr):
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    read = tl.load(x + at)
    if TO == "bf16":
        tl.store(out + at, rounding.to_bf16(read))
    elif TO == "fp8":
        tl.store(out + at, rounding.to_fp8(read))
    else:
        tl.store(out + at, rounding.to_int8(read))


@triton.jit
def halves(words, out, KIND: tl.constexpr, COUNT: tl.constexpr):
    """Both numbers of a byte, of a pair of e4m3, of a pair of bfloat16."""
    at = tl.arange(0, COUNT)
    read = tl.load(words + at)
    for high in tl.static_range(2):
        if KIND == "nibble":
            found = moe_gemm._nibble(read, high == 1)
        elif KIND == "e4m3":
            found = decode_attention._numbers(read, high == 1)
        else:
            found = moe_gemm._half(read, high == 1)
        tl.store(out + 2 * at + high, found)
