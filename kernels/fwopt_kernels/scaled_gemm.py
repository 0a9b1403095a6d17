"""y = (x * x_scale) @ (W * w_scale)^T of 8-bit numbers, bfloat16 result: wrapper and variants.

`fp8_gemm.py` and `int8_gemm.py` are the operators, the kernels are in `scaled_kernel.py`. W is (N, K) with K adjacent,
as checkpoints have it. Where a scale holds for all of K it multiplies the finished sums, so parts of K are added before
it: sums of int8 products stay exact, whatever the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import triton
from torch import Tensor

from fwopt_kernels import persistent, row_formats, scaled_kernel, tiling
from fwopt_kernels.contract import NUM_STAGES, NUM_WARPS, Large, Launch, Space, Variant, Work, variant
from fwopt_kernels.row_formats import MULTIPLE_K

SCALE_BLOCK = 128
"""Values of K, and channels, that share a scale in formats of blocks."""


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


def launch(
    x: Scaled, weight: Scaled, out: Tensor, *, format: Format, variant: Variant, multiprocessors: int | None = None
) -> None:
    """out (M, N) bfloat16 = x (M, K) @ W^T, of tensors that `require` lets pass. `multiprocessors`: the device's."""
    if len(out) == 0:
        return
    if variant["TMA"]:
        triton.set_allocator(_scratch)
    if dict(variant.constants).get(persistent.AXIS):
        _several_tiles(x, weight, out, format, variant, multiprocessors or persistent.multiprocessors(out.device))
    else:
        _one_tile(x, weight, out, format, variant)


def _one_tile(x: Scaled, weight: Scaled, out: Tensor, format: Format, variant: Variant) -> None:
    (rows, columns), inner = out.shape, weight.values.shape[1]
    constants = _constants(variant)
    parts = variant["SPLIT_K"]
    partial = out if parts == 1 else tiling.workspace(parts, out, format.total)
    grid = (triton.cdiv(rows, variant["BLOCK_M"]) * triton.cdiv(columns, variant["BLOCK_N"]), parts)
    scaled_kernel.one_tile[grid](
        x.values, weight.values, x.scale, weight.scale, partial, rows, columns, inner,
        x.values.stride(0), weight.values.stride(0), tiling.scale_stride(x.scale),
        tiling.scale_stride(weight.scale), partial.stride(-2), rows * columns,
        BLOCKED=format.blocked, EVEN=inner % constants["BLOCK_K"] == 0, **constants, **variant.options,
    )  # fmt: skip
    if parts > 1:
        tiling.add(partial, out, None if format.blocked else (x.scale, weight.scale))


def _several_tiles(
    x: Scaled, weight: Scaled, out: Tensor, format: Format, variant: Variant, multiprocessors: int
) -> None:
    (rows, columns), inner = out.shape, weight.values.shape[1]
    constants = _constants(variant)
    tiles = triton.cdiv(rows, variant["BLOCK_M"]) * triton.cdiv(columns, variant["BLOCK_N"])
    at_once = multiprocessors * _at_once(variant)
    plan = persistent.schedule(variant, tiles, triton.cdiv(inner, constants["BLOCK_K"]), at_once)
    partial = persistent.workspace(plan, variant, out, format.total)
    scaled_kernel.several_tiles[(plan.programs,)](
        x.values, weight.values, x.scale, weight.scale, out, partial, rows, columns, inner,
        x.values.stride(0), weight.values.stride(0), tiling.scale_stride(x.scale),
        tiling.scale_stride(weight.scale), out.stride(0), plan.whole,
        BLOCKED=format.blocked, SHARES=plan.whole < tiles, **constants, **variant.options,
    )  # fmt: skip
    persistent.join(partial, out, plan, variant, None if format.blocked else (x.scale, weight.scale))


def _constants(variant: Variant) -> dict[str, int]:
    """Of the kernel that the variant runs."""
    given = {"BLOCK_K": SCALE_BLOCK, **dict(variant.constants)}
    return persistent.constants(given) if given.pop(persistent.AXIS, 0) else given


def _at_once(v: Variant) -> int:
    """Programs that a multiprocessor runs at the same time: two of four warps each, if its shared memory holds both."""
    tiles = (v["BLOCK_M"] + v["BLOCK_N"]) * SCALE_BLOCK * v.num_stages
    return 2 if v.num_warps == 4 and 2 * tiles <= 200_000 else 1


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
        and (v[persistent.AXIS] == 0 or (v["TMA"] == 1 and channels >= 128))  # large tiles: few are left over
        and (v.num_stages >= 4 if rows <= 32 else v.num_stages <= 4)
        and (rows > 32 or channels * depth * (v.num_stages - 1) <= 2**16)  # weights on their way: enough by far
        and (rows + channels) * depth * v.num_stages <= 225_000  # bytes of shared memory
    )


def space(format: Format) -> Space:
    """In formats of blocks, a block of K and one of channels have one scale."""
    axes = {
        "BLOCK_M": (8, 16, 32, 64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (128, 256), "SPLIT_K": (1, 2, 4, 8),
        "GROUP_M": (1, 8), "SWAP_AB": (0, 1), "TMA": (0, 1), persistent.AXIS: (0, persistent.WHOLE, persistent.SHARED),
        NUM_WARPS: (4, 8), NUM_STAGES: (3, 4, 6),
    }  # fmt: skip
    constants = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "SPLIT_K": 4, "GROUP_M": 1, "SWAP_AB": 1, "TMA": 0}
    constants[persistent.AXIS] = 0
    large = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "SPLIT_K": 1, "GROUP_M": 8, "SWAP_AB": 0, "TMA": 0}
    large[persistent.AXIS] = 0
    if format.blocked:
        axes["BLOCK_N"], large["BLOCK_N"] = (64, 128), 128
        del axes["BLOCK_K"], constants["BLOCK_K"], large["BLOCK_K"]
    prefill = Large(lambda shape: shape["m"], 64, variant(8, 3, **large))
    return Space(axes, variant(4, 4, **constants), _allowed, prefill)


def launches(format: Format, variant: Variant) -> tuple[Launch, ...]:
    several = dict(variant.constants).get(persistent.AXIS, 0)
    total = "*i32" if format.total == torch.int32 else "*fp32"
    whole = several or variant["SPLIT_K"] == 1
    signature = {
        "x": format.triton, "weight": format.triton, "x_scale": "*fp32", "w_scale": "*fp32",
        "out": "*bf16" if whole else total, **({"partial": total} if several else {}),
        "rows": "i32", "columns": "i32", "inner": "i32", "x_stride": "i32", "w_stride": "i32",
        "x_scale_stride": "i32", "w_scale_stride": "i32", "out_stride": "i32",
        **({"whole": "i32"} if several else {"part_stride": "i32"}),
    }  # fmt: skip
    loose = ("rows", "x_scale_stride", "w_scale_stride", "whole")
    own = {"SHARES": several == persistent.SHARED} if several else {"EVEN": True}
    constants = {"BLOCKED": format.blocked, **own, **_constants(variant)}
    aligned = tuple(name for name in signature if name not in loose)
    kernel = scaled_kernel.several_tiles if several else scaled_kernel.one_tile
    second = persistent if several else tiling
    product = Launch(kernel, signature, constants, aligned, variant.options)
    return (product, *second.launches(variant, total, scaled=not format.blocked))


def work(format: Format, shape: Mapping[str, int]) -> Work:
    m, n, k = (shape[name] for name in ("m", "n", "k"))
    scales = sum(torch.Size(one).numel() for one in format.scale_shapes(m, n, k))
    return Work(m * k + n * k + 4 * scales + 2 * m * n, 2 * m * n * k)


@dataclass(frozen=True)
class ScaledGemm:
    """What its operators share, whatever their numbers are."""

    facts: Mapping[str, Format]
    spaces: Mapping[str, Space]
    dimensions = ("m", "n", "k")

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(self.facts)

    def space(self, format: str) -> Space:
        return self.spaces[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        return launches(self.facts[format], variant)

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        return work(self.facts[format], shape)


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
