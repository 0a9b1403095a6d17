"""The kernels of `w4a16.py`: a program a tile and part of K, or programs that work through several tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels import mxfp4, persistent, tiling
from fwopt_kernels import w4_dequant as dequant
from fwopt_kernels.rounding import dot

_MX_FACTOR = tl.constexpr(2.0**mxfp4.SHIFT)


@triton.jit
def _sums(
    x, codes, scales, zeros, m_block, n_block, first, last, rows, inner, n_tiles, x_stride, tile_stride, scale_stride,
    zero_stride, GROUP: tl.constexpr, ZERO: tl.constexpr, MX: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LATE_SCALE: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] over blocks first..last of K.

    EVEN: K is a multiple of BLOCK_K. LATE_SCALE: scales multiply a block's sums instead of its weights.
    """
    GROUPS: tl.constexpr = BLOCK_K // GROUP if GROUP > 0 and GROUP < BLOCK_K else 1  # noqa: N806
    m = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = n_block * (BLOCK_N // 16) + tl.arange(0, BLOCK_N // 16)
    inside = tl.arange(0, BLOCK_K * 8)  # bytes of a block of K of 16 channels
    k = tl.arange(0, BLOCK_K)
    two = n_block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)  # words of scales, and of zero points
    four = n_block * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
    has_two, has_four = two < n_tiles * 8, four < n_tiles * 4
    codes += tl.where(tile < n_tiles, tile, 0).to(tl.int64)[:, None] * tile_stride + inside[None, :]
    codes += first * (BLOCK_K * 8)
    x += m.to(tl.int64)[:, None] * x_stride + k[None, :] + first * BLOCK_K
    real = (m < rows)[:, None]
    shift = dequant.constant(-136.0)
    if ZERO and GROUP == 0:
        shift = dequant.bytes_of(tl.load(zeros + four, mask=has_four, other=0)[None, :], MX, 1, BLOCK_N)
    if LATE_SCALE:  # Triton fetches ahead only what a product reads, so these are fetched a block ahead by hand
        ahead = dequant.words_of(scales, scale_stride, first, inner, two, has_two, GROUP, GROUPS, BLOCK_K)
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(first, last):
        if EVEN:
            q = tl.load(codes)
            some_x = tl.load(x, mask=real, other=0.0)
        else:
            left = inner - block * BLOCK_K
            q = tl.load(codes, mask=(inside // 1024 * 128 < left)[None, :], other=0)
            some_x = tl.load(x, mask=real & (k < left)[None, :], other=0.0)
        if ZERO and GROUP > 0:
            packed = dequant.words_of(zeros, zero_stride, block, inner, four, has_four, GROUP, GROUPS, BLOCK_K)
            minus = dequant.spread(dequant.bytes_of(packed, MX, GROUPS, BLOCK_N), GROUPS, BLOCK_N, BLOCK_K)
        else:
            minus = shift
        if MX:
            weights = dequant.mxfp4(q, scales, scale_stride, block, inner, four, has_four, BLOCK_N, BLOCK_K)
        else:
            weights = dequant.fma(dequant.codes_of(q, MX, BLOCK_N, BLOCK_K), dequant.constant(1.0), minus)
        if LATE_SCALE:
            scale = dequant.scales_of(ahead, 1, BLOCK_N).to(tl.float32)
            ahead = dequant.words_of(scales, scale_stride, block + 1, inner, two, has_two, GROUP, GROUPS, BLOCK_K)
            sums += dot(weights, tl.trans(some_x), tl.zeros_like(sums)) * scale
        elif GROUP > 0 and not MX:
            packed = dequant.words_of(scales, scale_stride, block, inner, two, has_two, GROUP, GROUPS, BLOCK_K)
            scale = dequant.spread(dequant.scales_of(packed, GROUPS, BLOCK_N), GROUPS, BLOCK_N, BLOCK_K)
            sums = dot(dequant.fma(weights, scale, dequant.constant(-0.0)), tl.trans(some_x), sums)
        else:
            sums = dot(weights, tl.trans(some_x), sums)
        codes += BLOCK_K * 8
        x += BLOCK_K
    if GROUP == 0:
        sums *= dequant.scales_of(tl.load(scales + two, mask=has_two, other=0)[None, :], 1, BLOCK_N).to(tl.float32)
    if MX:
        sums *= _MX_FACTOR
    return tl.trans(sums)


@triton.jit
def _store(
    sums, out, m_block, n_block, rows, columns, out_stride, part_stride, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    m, n = m_block * BLOCK_M + tl.arange(0, BLOCK_M), n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    tiling.store(sums, out, m, n, rows, columns, out_stride, part_stride, SPLIT_K)


@triton.jit
def one_tile(
    x, codes, scales, zeros, out, rows, columns, inner, n_tiles, x_stride, tile_stride, scale_stride, zero_stride,
    out_stride, part_stride, GROUP: tl.constexpr, ZERO: tl.constexpr, MX: tl.constexpr, EVEN: tl.constexpr,
    SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    LATE_SCALE: tl.constexpr,
):  # fmt: skip
    """One program BLOCK_M rows of x by BLOCK_N channels by its part of K."""
    m_block, n_block = tiling.place(tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), GROUP_M)
    first, last = tiling.blocks(inner, BLOCK_K, SPLIT_K)
    sums = _sums(
        x, codes, scales, zeros, m_block, n_block, first, last, rows, inner, n_tiles, x_stride, tile_stride,
        scale_stride, zero_stride, GROUP, ZERO, MX, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, LATE_SCALE,
    )  # fmt: skip
    _store(sums, out, m_block, n_block, rows, columns, out_stride, part_stride, SPLIT_K, BLOCK_M, BLOCK_N)


@triton.jit
def several_tiles(
    x, codes, scales, zeros, out, partial, rows, columns, inner, n_tiles, x_stride, tile_stride, scale_stride,
    zero_stride, out_stride, whole, GROUP: tl.constexpr, ZERO: tl.constexpr, MX: tl.constexpr, EVEN: tl.constexpr,
    SHARES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """One program every so manieth of the first `whole` tiles and, with SHARES, its share of the rest."""
    m_blocks, n_blocks, k_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), tl.cdiv(inner, BLOCK_K)
    for tile in tl.range(tl.program_id(0), whole, tl.num_programs(0), flatten=True):
        m_block, n_block = tiling.place_of(tile, m_blocks, n_blocks, GROUP_M)
        sums = _sums(
            x, codes, scales, zeros, m_block, n_block, 0, k_blocks, rows, inner, n_tiles, x_stride, tile_stride,
            scale_stride, zero_stride, GROUP, ZERO, MX, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, False,
        )  # fmt: skip
        _store(sums, out, m_block, n_block, rows, columns, out_stride, 0, 1, BLOCK_M, BLOCK_N)
    if SHARES:
        begin, end, count = persistent.pieces(m_blocks * n_blocks - whole, k_blocks)
        for piece in range(count):
            tile = begin // k_blocks + piece
            first = tl.maximum(begin - tile * k_blocks, 0)
            last = tl.minimum(end - tile * k_blocks, k_blocks)
            m_block, n_block = tiling.place_of(whole + tile, m_blocks, n_blocks, GROUP_M)
            sums = _sums(
                x, codes, scales, zeros, m_block, n_block, first, last, rows, inner, n_tiles, x_stride, tile_stride,
                scale_stride, zero_stride, GROUP, ZERO, MX, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, False,
            )  # fmt: skip
            if last - first < k_blocks:
                persistent.store_part(sums, partial, first, BLOCK_M, BLOCK_N)
            else:
                _store(sums, out, m_block, n_block, rows, columns, out_stride, 0, 1, BLOCK_M, BLOCK_N)
