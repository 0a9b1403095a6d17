"""The kernels of `scaled_gemm.py`: a program a tile and part of K, or programs that work through several tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels import persistent, tiling
from fwopt_kernels.rounding import dot


@triton.jit
def _sums(
    x, weight, x_scale, w_scale, m_block, n_block, first, last, rows, columns, inner, x_stride, w_stride,
    x_scale_stride, w_scale_stride, TOTAL: tl.constexpr, BLOCKED: tl.constexpr, EVEN: tl.constexpr,
    SWAP_AB: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] over blocks first..last of K; x and weight: with TMA descriptors of tiles, else addresses."""
    m, n = m_block * BLOCK_M + tl.arange(0, BLOCK_M), n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = m < rows
    if not TMA:
        k = tl.arange(0, BLOCK_K)
        x += m.to(tl.int64)[:, None] * x_stride + k[None, :] + first * BLOCK_K
        weight += tl.where(n < columns, n, 0).to(tl.int64)[:, None] * w_stride + k[None, :] + first * BLOCK_K
    if BLOCKED:  # a scale a block of K; fetched a block ahead
        x_scale += m.to(tl.int64) * x_scale_stride
        w_scale += (n_block * BLOCK_N // 128).to(tl.int64) * w_scale_stride
        final = tl.cdiv(inner, BLOCK_K) - 1
        next_x = tl.load(x_scale + tl.minimum(first, final), mask=real, other=0.0)
        next_w = tl.load(w_scale + tl.minimum(first, final))
    sums = tl.zeros([BLOCK_N, BLOCK_M] if SWAP_AB else [BLOCK_M, BLOCK_N], TOTAL)
    for block in range(first, last):
        if TMA:
            some_x = x.load([m_block * BLOCK_M, block * BLOCK_K])
            some_w = weight.load([n_block * BLOCK_N, block * BLOCK_K])
        elif EVEN:
            some_x = tl.load(x, mask=real[:, None], other=0.0)
            some_w = tl.load(weight)
        else:
            left = inner - block * BLOCK_K
            some_x = tl.load(x, mask=real[:, None] & (k < left)[None, :], other=0.0)
            some_w = tl.load(weight, mask=(k < left)[None, :], other=0.0)
        if BLOCKED:
            scale = next_x * next_w
            next_x = tl.load(x_scale + tl.minimum(block + 1, final), mask=real, other=0.0)
            next_w = tl.load(w_scale + tl.minimum(block + 1, final))
            if SWAP_AB:
                sums += dot(some_w, tl.trans(some_x), tl.zeros_like(sums)) * scale[None, :]
            else:
                sums += dot(some_x, tl.trans(some_w), tl.zeros_like(sums)) * scale[:, None]
        elif SWAP_AB:
            sums = dot(some_w, tl.trans(some_x), sums)
        else:
            sums = dot(some_x, tl.trans(some_w), sums)
        if not TMA:
            x += BLOCK_K
            weight += BLOCK_K
    return tl.trans(sums) if SWAP_AB else sums


@triton.jit
def _descriptors(
    x, weight, rows, columns, inner, x_stride, w_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    x_tiles = tl.make_tensor_descriptor(x, [rows, inner], [x_stride.to(tl.int64), 1], [BLOCK_M, BLOCK_K])
    w_tiles = tl.make_tensor_descriptor(weight, [columns, inner], [w_stride.to(tl.int64), 1], [BLOCK_N, BLOCK_K])
    return x_tiles, w_tiles


@triton.jit
def _store(
    sums, x_scale, w_scale, out, m_block, n_block, rows, columns, x_scale_stride, w_scale_stride, out_stride,
    part_stride, SCALED: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of sums, times their scales where they are whole."""
    m, n = m_block * BLOCK_M + tl.arange(0, BLOCK_M), n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    if SCALED and SPLIT_K == 1:
        by_row = tl.load(x_scale + m * x_scale_stride, mask=m < rows, other=0.0)
        by_channel = tl.load(w_scale + n * w_scale_stride, mask=n < columns, other=0.0)
        sums = tiling.scaled(sums, by_row[:, None], by_channel[None, :])
    tiling.store(sums, out, m, n, rows, columns, out_stride, part_stride, SPLIT_K)


@triton.jit
def one_tile(
    x, weight, x_scale, w_scale, out, rows, columns, inner, x_stride, w_stride, x_scale_stride, w_scale_stride,
    out_stride, part_stride, BLOCKED: tl.constexpr, EVEN: tl.constexpr, SPLIT_K: tl.constexpr, SWAP_AB: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program BLOCK_M rows by BLOCK_N channels by its part of K.

    BLOCKED: scales per 128 values of K. EVEN: K is a multiple of BLOCK_K. SWAP_AB: (W x^T)^T, for few rows: the matrix
    unit's first operand has 64 rows at least, its second one may have 8. TMA: Hopper's copy engine fetches whole tiles.
    """
    TOTAL: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32  # noqa: N806
    m_block, n_block = tiling.place(tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), GROUP_M)
    first, last = tiling.blocks(inner, BLOCK_K, SPLIT_K)
    if TMA:
        x, weight = _descriptors(x, weight, rows, columns, inner, x_stride, w_stride, BLOCK_M, BLOCK_N, BLOCK_K)
    sums = _sums(
        x, weight, x_scale, w_scale, m_block, n_block, first, last, rows, columns, inner, x_stride, w_stride,
        x_scale_stride, w_scale_stride, TOTAL, BLOCKED, EVEN, SWAP_AB, BLOCK_M, BLOCK_N, BLOCK_K, TMA,
    )  # fmt: skip
    _store(
        sums, x_scale, w_scale, out, m_block, n_block, rows, columns, x_scale_stride, w_scale_stride, out_stride,
        part_stride, not BLOCKED, SPLIT_K, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def several_tiles(
    x, weight, x_scale, w_scale, out, partial, rows, columns, inner, x_stride, w_stride, x_scale_stride,
    w_scale_stride, out_stride, whole, BLOCKED: tl.constexpr, SHARES: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One program every so manieth of the first `whole` tiles and, with SHARES, its share of the rest; all by TMA."""
    TOTAL: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32  # noqa: N806
    m_blocks, n_blocks, k_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), tl.cdiv(inner, BLOCK_K)
    x, weight = _descriptors(x, weight, rows, columns, inner, x_stride, w_stride, BLOCK_M, BLOCK_N, BLOCK_K)
    for tile in tl.range(tl.program_id(0), whole, tl.num_programs(0), flatten=True):
        m_block, n_block = tiling.place_of(tile, m_blocks, n_blocks, GROUP_M)
        sums = _sums(
            x, weight, x_scale, w_scale, m_block, n_block, 0, k_blocks, rows, columns, inner, x_stride, w_stride,
            x_scale_stride, w_scale_stride, TOTAL, BLOCKED, False, False, BLOCK_M, BLOCK_N, BLOCK_K, True,
        )  # fmt: skip
        _store(
            sums, x_scale, w_scale, out, m_block, n_block, rows, columns, x_scale_stride, w_scale_stride, out_stride,
            0, not BLOCKED, 1, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    if SHARES:
        begin, end, count = persistent.pieces(m_blocks * n_blocks - whole, k_blocks)
        for piece in range(count):
            tile = begin // k_blocks + piece
            first = tl.maximum(begin - tile * k_blocks, 0)
            last = tl.minimum(end - tile * k_blocks, k_blocks)
            m_block, n_block = tiling.place_of(whole + tile, m_blocks, n_blocks, GROUP_M)
            sums = _sums(
                x, weight, x_scale, w_scale, m_block, n_block, first, last, rows, columns, inner, x_stride, w_stride,
                x_scale_stride, w_scale_stride, TOTAL, BLOCKED, False, False, BLOCK_M, BLOCK_N, BLOCK_K, True,
            )  # fmt: skip
            if last - first < k_blocks:
                persistent.store_part(sums, partial, first, BLOCK_M, BLOCK_N)
            else:
                _store(
                    sums, x_scale, w_scale, out, m_block, n_block, rows, columns, x_scale_stride, w_scale_stride,
                    out_stride, 0, not BLOCKED, 1, BLOCK_M, BLOCK_N,
                )  # fmt: skip
