"""y = (x * x_scale) @ (W * w_scale)^T of 8-bit numbers, bfloat16 result: the kernel, its wrapper and its variants.

`fp8_gemm.py` and `int8_gemm.py` are the operators. W is (N, K) with K adjacent, as checkpoints have it. Where a scale
holds for all of K it multiplies the finished sums, so parts of K are added before it: sums of int8 products stay
exact, whatever the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import row_formats, tiling
from fwopt_kernels.contract import NUM_STAGES, NUM_WARPS, Large, Launch, Space, Variant, Work, variant
from fwopt_kernels.rounding import dot
from fwopt_kernels.row_formats import MULTIPLE_K

SCALE_BLOCK = 128
"""Values of K, and channels, that share a scale in formats of blocks."""


@triton.jit
def _scaled_gemm(
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
    m, n = m_block * BLOCK_M + tl.arange(0, BLOCK_M), n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = m < rows
    if TMA:
        x_tiles = tl.make_tensor_descriptor(x, [rows, inner], [x_stride.to(tl.int64), 1], [BLOCK_M, BLOCK_K])
        w_tiles = tl.make_tensor_descriptor(weight, [columns, inner], [w_stride.to(tl.int64), 1], [BLOCK_N, BLOCK_K])
    else:
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
            some_x = x_tiles.load([m_block * BLOCK_M, block * BLOCK_K])
            some_w = w_tiles.load([n_block * BLOCK_N, block * BLOCK_K])
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
    if SWAP_AB:
        sums = tl.trans(sums)
    if SPLIT_K == 1 and not BLOCKED:
        by_row = tl.load(x_scale + m * x_scale_stride, mask=real, other=0.0)
        by_channel = tl.load(w_scale + n * w_scale_stride, mask=n < columns, other=0.0)
        sums = tiling.scaled(sums, by_row[:, None], by_channel[None, :])
    tiling.store(sums, out, m, n, rows, columns, out_stride, part_stride, SPLIT_K)


@dataclass(frozen=True)
class Scaled:
    """8-bit values (rows, K) and their float32 scales: one, (rows,), or a table of blocks."""

    values: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Format:
    """Numbers, and what shares a scale: all of them, a row (a channel, of weights), a block."""

    dtype: torch.dtype
    x: Literal["all", "row", "block"]
    weight: Literal["all", "row", "block"]

    @property
    def blocked(self) -> bool:
        return self.x == "block"

    @property
    def triton(self) -> str:
        return {torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv"}[self.dtype]

    @property
    def total(self) -> torch.dtype:
        """Of sums over K that still miss their scales."""
        return torch.int32 if self.dtype == torch.int8 else torch.float32

    def scale_shapes(self, rows: int, columns: int, inner: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of x and of the weights."""
        across = triton.cdiv(inner, SCALE_BLOCK)
        x = {"all": (1,), "row": (rows,), "block": (rows, across)}
        weight = {"all": (1,), "row": (columns,), "block": (triton.cdiv(columns, SCALE_BLOCK), across)}
        return x[self.x], weight[self.weight]


def launch(x: Scaled, weight: Scaled, out: Tensor, *, format: Format, variant: Variant) -> None:
    """out (M, N) bfloat16 = x (M, K) @ W^T, of tensors that `require` lets pass."""
    rows, columns = out.shape
    inner = weight.values.shape[1]
    if rows == 0:
        return
    constants = {"BLOCK_K": SCALE_BLOCK, **dict(variant.constants)}
    if constants["TMA"]:
        triton.set_allocator(_scratch)
    parts = variant["SPLIT_K"]
    partial = out if parts == 1 else tiling.workspace(parts, out, format.total)
    grid = (triton.cdiv(rows, variant["BLOCK_M"]) * triton.cdiv(columns, variant["BLOCK_N"]), parts)
    _scaled_gemm[grid](
        x.values, weight.values, x.scale, weight.scale, partial, rows, columns, inner,
        x.values.stride(0), weight.values.stride(0), tiling.scale_stride(x.scale),
        tiling.scale_stride(weight.scale), partial.stride(-2), rows * columns,
        BLOCKED=format.blocked, EVEN=inner % constants["BLOCK_K"] == 0, **constants, **variant.options,
    )  # fmt: skip
    if parts > 1:
        tiling.add(partial, out, None if format.blocked else (x.scale, weight.scale))


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where a kernel builds its descriptors of tiles."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def require(name: str, format: str, facts: Format, x: Scaled, weight: Scaled, out: Tensor) -> None:
    """Numbers and shapes that agree, and rows that 16-byte loads can read."""
    row_formats.require_packed(x=x.values, weight=weight.values, out=out)
    (rows, columns), inner = out.shape, weight.values.shape[1]
    wanted = ((rows, inner), (columns, inner), *facts.scale_shapes(rows, columns, inner))
    got = tuple(tuple(t.shape) for t in (x.values, weight.values, x.scale, weight.scale))
    if got != wanted:
        raise ValueError(f"{name} {format}: x, weight and their scales must be {wanted}; got {got}")
    if inner % MULTIPLE_K:
        raise ValueError(f"{name} needs K divisible by {MULTIPLE_K}; got {inner}")
    for which, one in (("x", x), ("weight", weight)):
        if one.values.dtype != facts.dtype:
            raise ValueError(f"{which}: {name} {format} multiplies {facts.dtype}, got {one.values.dtype}")
        if one.values.stride(0) % MULTIPLE_K or one.values.data_ptr() % MULTIPLE_K:
            raise ValueError(
                f"{which}: rows must begin at multiples of {MULTIPLE_K} bytes; they are {one.values.stride(0)} apart"
            )
        if one.scale.dtype != torch.float32 or one.scale.stride(-1) != 1:
            raise ValueError(f"{which}: scales must be packed float32, got {one.scale.dtype} {one.scale.stride()}")


def _allowed(v: Variant) -> bool:
    """What can win on Hopper."""
    rows, channels, depth = v["BLOCK_M"], v["BLOCK_N"], dict(v.constants).get("BLOCK_K", SCALE_BLOCK)
    by_block = "BLOCK_K" not in dict(v.constants)  # each block's sums beside the total: twice the registers
    sums = rows * channels // (32 * v.num_warps)  # registers a thread
    return (
        (bool(v["SWAP_AB"]) == (rows < 64) or rows == 64)  # the first operand has 64 rows or channels
        and (v.num_warps == 4 or channels >= 128)  # a warpgroup takes 64 of them
        and (
            sums <= (64 if by_block else 128) and (sums >= 64 or rows <= 64)
        )  # more spill, fewer starve the matrix unit
        and (depth == 128 or rows <= 32)  # a deeper block is for few rows, which wait for memory
        and v["SPLIT_K"] <= (8 if rows <= 32 else 4 if rows == 64 else 1)  # larger batches have blocks enough
        and (v["GROUP_M"] == 1 or (rows >= 64 and v["SPLIT_K"] == 1))  # a batch of one block of rows has no order
        and (v["TMA"] == 0 or rows == 128)  # tiles large enough for a copy engine
        and (v.num_stages >= 4 if rows <= 32 else v.num_stages <= 4)
        and (rows > 32 or channels * depth * (v.num_stages - 1) <= 2**16)  # weights on their way: enough by far
        and (rows + channels) * depth * v.num_stages <= 225_000  # bytes of shared memory
    )


def space(format: Format) -> Space:
    """In formats of blocks, a block of K and one of channels have one scale."""
    axes = {
        "BLOCK_M": (8, 16, 32, 64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (128, 256), "SPLIT_K": (1, 2, 4, 8),
        "GROUP_M": (1, 8), "SWAP_AB": (0, 1), "TMA": (0, 1), NUM_WARPS: (4, 8), NUM_STAGES: (3, 4, 6),
    }  # fmt: skip
    constants = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "SPLIT_K": 4, "GROUP_M": 1, "SWAP_AB": 1, "TMA": 0}
    large = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "SPLIT_K": 1, "GROUP_M": 8, "SWAP_AB": 0, "TMA": 0}
    if format.blocked:
        axes["BLOCK_N"], large["BLOCK_N"] = (64, 128), 128
        del axes["BLOCK_K"], constants["BLOCK_K"], large["BLOCK_K"]
    prefill = Large(lambda shape: shape["m"], 64, variant(8, 3, **large))
    return Space(axes, variant(4, 4, **constants), _allowed, prefill)


def launches(format: Format, variant: Variant) -> tuple[Launch, ...]:
    whole = variant["SPLIT_K"] == 1
    total = "*i32" if format.total == torch.int32 else "*fp32"
    signature = {
        "x": format.triton, "weight": format.triton, "x_scale": "*fp32", "w_scale": "*fp32",
        "out": "*bf16" if whole else total,
        "rows": "i32", "columns": "i32", "inner": "i32", "x_stride": "i32", "w_stride": "i32",
        "x_scale_stride": "i32", "w_scale_stride": "i32", "out_stride": "i32", "part_stride": "i32",
    }  # fmt: skip
    loose = ("rows", "x_scale_stride", "w_scale_stride")
    constants = {"BLOCKED": format.blocked, "EVEN": True, "BLOCK_K": SCALE_BLOCK, **dict(variant.constants)}
    aligned = tuple(name for name in signature if name not in loose)
    product = Launch(_scaled_gemm, signature, constants, aligned, variant.options)
    return (product, *tiling.launches(variant, total, scaled=not format.blocked))


def work(format: Format, shape: Mapping[str, int]) -> Work:
    m, n, k = (shape[name] for name in ("m", "n", "k"))
    scales = sum(torch.Size(one).numel() for one in format.scale_shapes(m, n, k))
    return Work(m * k + n * k + 4 * scales + 2 * m * n, 2 * m * n * k)


@dataclass(frozen=True)
class ScaledCase:
    format: str
    x: Scaled
    weight: Scaled
    out: Tensor

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.to(torch.float64)}


def case(
    format: str, facts: Format, values: tuple[Tensor, Tensor], inner: int, random: torch.Generator, device: str
) -> ScaledCase:
    """Of x's and the weights' `values`, cut to `inner` numbers of their rows, with random scales."""
    m, n = (len(one) for one in values)
    x, weight = (
        Scaled(one.to(device)[:, :inner], (0.01 + 0.02 * torch.rand(*shape, generator=random)).to(device))
        for one, shape in zip(values, facts.scale_shapes(m, n, inner), strict=True)
    )
    return ScaledCase(format, x, weight, row_formats.poisoned("bf16", m, n, device).values)


def by_value(one: Scaled, shares: Literal["all", "row", "block"], *, rows: int) -> Tensor:
    """Scales in float64 that broadcast over (rows, K); `rows` share a scale in blocks."""
    scale = one.scale.double()
    if shares == "block":
        scale = scale.repeat_interleave(rows, 0)[: one.values.shape[0]]
        return scale.repeat_interleave(SCALE_BLOCK, 1)[:, : one.values.shape[1]]
    return scale.unsqueeze(1)
