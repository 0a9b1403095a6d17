"""Repacked 4-bit weights inside kernels: codes, scales and zero points in registers. Layout: `w4_format.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels.rounding import INTERPRETED, through_bf16


@triton.jit
def _nibbles(q):
    """Bytes -> 128 + low nibble, 128 + high nibble: a nibble or-ed into the mantissa of 128 needs no conversion.

    Two bytes become one bfloat16 pair: 8 integer instructions for 8 weights. float32 when interpreted.
    """
    if INTERPRETED:
        return (q & 15).to(tl.float32) + 128.0, (q >> 4).to(tl.float32) + 128.0
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b;
            prmt.b32 a, $4, 0, 0x4140;
            prmt.b32 b, $4, 0, 0x4342;
            lop3.b32 $0, a, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $1, b, 0x000F000F, 0x43004300, 0xEA;
            shr.b32 a, a, 4;
            shr.b32 b, b, 4;
            lop3.b32 $2, a, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $3, b, 0x000F000F, 0x43004300, 0xEA;
            }""",
            "=r,=r,=r,=r,r", [q], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip


@triton.jit
def e2m1(q):
    """Bytes -> their low and their high code, both times 2**-126: exponent and mantissa lie where a bfloat16's do, and
    0.5 is a subnormal number there. Eight copies of a byte's sign and the byte are shifted and masked: 13 integer
    instructions for 8 weights. float32 when interpreted.
    """
    if INTERPRETED:
        q = q.to(tl.uint32)
        low = ((q & 8) << 28) | ((q & 7) << 22)
        high = ((q & 128) << 24) | ((q & 112) << 18)
        return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b;
            shl.b32 a, $4, 4;
            prmt.b32 b, a, 0, 0x9180;
            shl.b32 b, b, 2;
            and.b32 $0, b, 0x81C081C0;
            prmt.b32 b, a, 0, 0xB3A2;
            shl.b32 b, b, 2;
            and.b32 $1, b, 0x81C081C0;
            prmt.b32 b, $4, 0, 0x9180;
            shl.b32 b, b, 2;
            and.b32 $2, b, 0x81C081C0;
            prmt.b32 b, $4, 0, 0xB3A2;
            shl.b32 b, b, 2;
            and.b32 $3, b, 0x81C081C0;
            }""",
            "=&r,=&r,=&r,=&r,r", [q], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip


@triton.jit
def constant(VALUE: tl.constexpr):
    """(1, 1) bfloat16; by way of float32, because Triton 3.6 interprets no bfloat16 constants."""
    return tl.full([1, 1], VALUE, tl.float32).to(tl.bfloat16)


@triton.jit
def fma(a, b, c):
    """a * b + c, rounded to bfloat16 once: one instruction for two."""
    if INTERPRETED:
        return through_bf16(a.to(tl.float32) * b.to(tl.float32) + c.to(tl.float32))
    else:
        return tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.bfloat16, is_pure=True, pack=2
        )


@triton.jit
def codes_of(q, MX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """KiB tiles -> 128 + code, MX: its value times 2**-126, as (BLOCK_N, BLOCK_K) in their natural order; no data moves
    between threads."""
    q = tl.reshape(q, [BLOCK_N // 16, BLOCK_K // 128, 2, 8, 4, 2, 2, 2, 2])
    q = tl.reshape(tl.permute(q, [0, 7, 3, 1, 2, 5, 6, 4, 8]), [BLOCK_N, BLOCK_K // 2])
    low, high = e2m1(q) if MX else _nibbles(q)
    both = tl.reshape(tl.join(low, high), [BLOCK_N, BLOCK_K // 32, 16, 2])
    return tl.reshape(tl.permute(both, [0, 1, 3, 2]), [BLOCK_N, BLOCK_K])


@triton.jit
def _bf16(bits):
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def scales_of(words, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr):
    """(BLOCK_N, GROUPS) bfloat16 out of words (GROUPS, BLOCK_N / 2)."""
    pairs = tl.reshape(tl.join(_bf16(words & 0xFFFF), _bf16(words >> 16)), [GROUPS, BLOCK_N // 16, 8, 2])
    return tl.reshape(tl.permute(pairs, [1, 3, 2, 0]), [BLOCK_N, GROUPS])


@triton.jit
def _byte(words, FIRST: tl.constexpr, MX: tl.constexpr):
    """Byte at bit FIRST of each word as bfloat16: MX, two to its power less 127, else the negative of 128 + it."""
    byte = (words >> FIRST) & 0xFF
    return _bf16(byte << 7 if MX else byte | 0xC300)


@triton.jit
def bytes_of(words, MX: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr):
    """(BLOCK_N, GROUPS) bfloat16 out of words (GROUPS, BLOCK_N / 4): -(128 + zero point), or MX scales."""
    even = tl.join(_byte(words, 0, MX), _byte(words, 16, MX))
    odd = tl.join(_byte(words, 8, MX), _byte(words, 24, MX))
    fours = tl.reshape(tl.join(even, odd), [GROUPS, BLOCK_N // 32, 8, 2, 2])
    return tl.reshape(tl.permute(fours, [1, 3, 4, 2, 0]), [BLOCK_N, GROUPS])


@triton.jit
def spread(values, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(BLOCK_N, GROUPS) -> (BLOCK_N, BLOCK_K): each value for its group."""
    wide = tl.broadcast_to(tl.expand_dims(values, 2), [BLOCK_N, GROUPS, BLOCK_K // GROUPS])
    return tl.reshape(wide, [BLOCK_N, BLOCK_K])


@triton.jit
def words_of(base, stride, block, inner, at, known, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Packed scales or zero points of the groups of a block of K: (GROUPS, words), 0 behind the end of K."""
    first = block // (GROUP // BLOCK_K) if GROUP >= BLOCK_K else block * GROUPS
    group = (first + tl.arange(0, GROUPS)).to(tl.int64)[:, None]
    return tl.load(base + group * stride + at[None, :], mask=(group * GROUP < inner) & known[None, :], other=0)


@triton.jit
def mxfp4(q, scales, stride, block, inner, at, known, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Weights (BLOCK_N, BLOCK_K) of a block of K, times 2**-mxfp4.SHIFT, out of its KiB tiles and packed scales."""
    GROUPS: tl.constexpr = BLOCK_K // 32  # noqa: N806
    scale = bytes_of(words_of(scales, stride, block, inner, at, known, 32, GROUPS, BLOCK_K), True, GROUPS, BLOCK_N)
    return fma(codes_of(q, True, BLOCK_N, BLOCK_K), spread(scale, GROUPS, BLOCK_N, BLOCK_K), constant(-0.0))
