"""y = (x * x_scale) @ (W * w_scale)^T with e4m3 activations and weights, bfloat16 result.

`fp8-tensor`: a scale each. `fp8-row`: a scale per row of x and per channel of W. `fp8-block`: per 128 values of K of a
row of x, and per 128 x 128 values of W, as DeepSeek-V3 stores them and vLLM reads them (`weight_scale_inv`).
W is (N, K) with K adjacent, as checkpoints have it.

Sums on Hopper: the matrix unit adds e4m3 products with about 14 bits (DeepSeek-V3 report, arXiv 2412.19437, section
3.3.2). `fp8-block` moves its sums to float32 every 128 values of K; the other formats leave them there for the whole of
K (Triton's default on sm_90, `max_num_imprecise_acc` 2**30), as vLLM's CUTLASS kernels with fast accumulation do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import row_formats, tiling
from fwopt_kernels.contract import (
    FALLBACK,
    NUM_STAGES,
    NUM_WARPS,
    Expected,
    Large,
    Launch,
    Space,
    Variant,
    Work,
    variant,
)  # fmt: skip
from fwopt_kernels.rounding import dot

FORMATS = ("fp8-tensor", "fp8-row", "fp8-block")
SCALE_BLOCK = 128
"""Values of K, and channels, that share a scale in `fp8-block`."""
MULTIPLE_K = 16
"""K, and the elements between rows, must be multiples of this: loads of 16 bytes."""


@triton.jit
def _fp8_gemm(
    x, weight, x_scale, w_scale, out, rows, columns, inner, x_stride, w_stride, x_scale_stride, w_scale_stride,
    out_stride, part_stride, FORMAT: tl.constexpr, EVEN: tl.constexpr, SPLIT_K: tl.constexpr, SWAP_AB: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program BLOCK_M rows by BLOCK_N channels by its part of K.

    EVEN: K is a multiple of BLOCK_K. SWAP_AB: (W x^T)^T, for few rows: the matrix unit's first operand has 64 rows at
    least, its second one may have 8. TMA: Hopper's copy engine fetches whole tiles.
    """
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
    if FORMAT == "fp8-block":  # a scale a block of K; fetched a block ahead
        x_scale += m.to(tl.int64) * x_scale_stride
        w_scale += (n_block * BLOCK_N // 128).to(tl.int64) * w_scale_stride
        final = tl.cdiv(inner, BLOCK_K) - 1
        next_x = tl.load(x_scale + tl.minimum(first, final), mask=real, other=0.0)
        next_w = tl.load(w_scale + tl.minimum(first, final))
    sums = tl.zeros([BLOCK_N, BLOCK_M] if SWAP_AB else [BLOCK_M, BLOCK_N], tl.float32)
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
        if FORMAT == "fp8-block":
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
    if FORMAT == "fp8-tensor":
        sums *= tl.load(x_scale) * tl.load(w_scale)
    elif FORMAT == "fp8-row":
        sums *= tl.load(x_scale + m, mask=real, other=0.0)[:, None]
        sums *= tl.load(w_scale + n, mask=n < columns, other=0.0)[None, :]
    tiling.store(sums, out, m, n, rows, columns, out_stride, part_stride, SPLIT_K)


@dataclass(frozen=True)
class Scaled:
    """e4m3 values (rows, K) and their float32 scales: one, (rows,), or a table of blocks."""

    values: Tensor
    scale: Tensor


def fp8_gemm(x: Scaled, weight: Scaled, out: Tensor, *, format: str, variant: Variant | None = None) -> None:
    """out (M, N) bfloat16 = x (M, K) @ W^T; all with unit stride along their rows.

    Scales: `fp8-tensor` one element each; `fp8-row` (M,) and (N,); `fp8-block` (M, K / 128) and (N / 128, K / 128),
    rounded up.
    """
    if variant == FALLBACK:
        FP8_GEMM.fallback(Fp8Case(format, x, weight, out))
        return
    rows, columns = out.shape
    inner = weight.values.shape[1]
    row_formats.require_packed(x=x.values, weight=weight.values, out=out)
    _require(x, weight, out, format)
    if rows == 0:
        return
    chosen = variant or SPACES[format].default_for({"m": rows})
    constants = {"BLOCK_K": SCALE_BLOCK, **dict(chosen.constants)}
    if constants["TMA"]:
        triton.set_allocator(_scratch)
    parts = chosen["SPLIT_K"]
    partial = out if parts == 1 else tiling.workspace(parts, out)
    grid = (triton.cdiv(rows, chosen["BLOCK_M"]) * triton.cdiv(columns, chosen["BLOCK_N"]), parts)
    _fp8_gemm[grid](
        x.values, weight.values, x.scale, weight.scale, partial, rows, columns, inner,
        x.values.stride(0), weight.values.stride(0), x.scale.stride(0), weight.scale.stride(0),
        partial.stride(-2), rows * columns,
        FORMAT=format, EVEN=inner % constants["BLOCK_K"] == 0, **constants, **chosen.options,
    )  # fmt: skip
    if parts > 1:
        tiling.add(partial, out)


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where a kernel builds its descriptors of tiles."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _scale_shapes(format: str, rows: int, columns: int, inner: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if format == "fp8-block":
        across = triton.cdiv(inner, SCALE_BLOCK)
        return (rows, across), (triton.cdiv(columns, SCALE_BLOCK), across)
    return ((rows,), (columns,)) if format == "fp8-row" else ((1,), (1,))


def _require(x: Scaled, weight: Scaled, out: Tensor, format: str) -> None:
    """Shapes that agree, and rows that 16-byte loads can read."""
    (rows, columns), inner = out.shape, weight.values.shape[1]
    wanted = ((rows, inner), (columns, inner), *_scale_shapes(format, rows, columns, inner))
    got = tuple(tuple(t.shape) for t in (x.values, weight.values, x.scale, weight.scale))
    if got != wanted:
        raise ValueError(f"fp8_gemm {format}: x, weight and their scales must be {wanted}; got {got}")
    if inner % MULTIPLE_K:
        raise ValueError(f"fp8_gemm needs K divisible by {MULTIPLE_K}; got {inner}")
    for name, one in (("x", x), ("weight", weight)):
        if one.values.stride(0) % MULTIPLE_K or one.values.data_ptr() % MULTIPLE_K:
            raise ValueError(
                f"{name}: rows must begin at multiples of {MULTIPLE_K} bytes; they are {one.values.stride(0)} apart"
            )
        if one.scale.dtype != torch.float32 or one.scale.stride(-1) != 1:
            raise ValueError(f"{name}: scales must be packed float32, got {one.scale.dtype} {one.scale.stride()}")


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


def _space(format: str) -> Space:
    """In `fp8-block`, a block of K and one of channels have one scale."""
    axes = {
        "BLOCK_M": (8, 16, 32, 64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (128, 256), "SPLIT_K": (1, 2, 4, 8),
        "GROUP_M": (1, 8), "SWAP_AB": (0, 1), "TMA": (0, 1), NUM_WARPS: (4, 8), NUM_STAGES: (3, 4, 6),
    }  # fmt: skip
    constants = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "SPLIT_K": 4, "GROUP_M": 1, "SWAP_AB": 1, "TMA": 0}
    large = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "SPLIT_K": 1, "GROUP_M": 8, "SWAP_AB": 0, "TMA": 0}
    if format == "fp8-block":
        axes["BLOCK_N"], large["BLOCK_N"] = (64, 128), 128
        del axes["BLOCK_K"], constants["BLOCK_K"], large["BLOCK_K"]
    prefill = Large(lambda shape: shape["m"], 64, variant(8, 3, **large))
    return Space(axes, variant(4, 4, **constants), _allowed, prefill)


def dequantized(one: Scaled, format: str, *, rows: int) -> Tensor:
    """(rows, K) float64; `rows` share a scale in `fp8-block`."""
    values, scale = one.values.float().double(), one.scale.double()
    if format == "fp8-block":
        scale = scale.repeat_interleave(rows, 0)[: values.shape[0]]
        scale = scale.repeat_interleave(SCALE_BLOCK, 1)[:, : values.shape[1]]
    elif format == "fp8-row":
        scale = scale.unsqueeze(1)
    return values * scale


@dataclass(frozen=True)
class Fp8Case:
    format: str
    x: Scaled
    weight: Scaled
    out: Tensor

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.to(torch.float64)}


class Fp8Gemm:
    """The operator `fp8_gemm`; shape: m, n, k."""

    name = "fp8_gemm"
    formats: tuple[str, ...] = FORMATS
    dimensions = ("m", "n", "k")

    def space(self, format: str) -> Space:
        return SPACES[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        signature = {
            "x": "*fp8e4nv", "weight": "*fp8e4nv", "x_scale": "*fp32", "w_scale": "*fp32",
            "out": "*bf16" if variant["SPLIT_K"] == 1 else "*fp32",
            "rows": "i32", "columns": "i32", "inner": "i32", "x_stride": "i32", "w_stride": "i32",
            "x_scale_stride": "i32", "w_scale_stride": "i32", "out_stride": "i32", "part_stride": "i32",
        }  # fmt: skip
        loose = ("rows", "x_scale_stride", "w_scale_stride")
        constants = {"FORMAT": format, "EVEN": True, "BLOCK_K": SCALE_BLOCK, **dict(variant.constants)}
        aligned = tuple(name for name in signature if name not in loose)
        return (Launch(_fp8_gemm, signature, constants, aligned, variant.options), *tiling.launches(variant))

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        m, n, k = (shape[name] for name in self.dimensions)
        x_scale, w_scale = _scale_shapes(format, m, n, k)
        scales = torch.Size(x_scale).numel() + torch.Size(w_scale).numel()
        return Work(m * k + n * k + 4 * scales + 2 * m * n, 2 * m * n * k)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> Fp8Case:
        m, n, k = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)

        def scaled(rows: int, scale_shape: tuple[int, ...]) -> Scaled:
            values = 16 * torch.randn(rows, k + padding // MULTIPLE_K * MULTIPLE_K, generator=random)
            values[:, k:] = float("nan")
            scale = 0.01 + 0.02 * torch.rand(*scale_shape, generator=random)
            return Scaled(values.to(torch.float8_e4m3fn).to(device)[:, :k], scale.to(device))

        x_scale, w_scale = _scale_shapes(format, m, n, k)
        out = row_formats.poisoned("bf16", m, n, device).values
        return Fp8Case(format, scaled(m, x_scale), scaled(n, w_scale), out)

    def reference(self, case: Fp8Case) -> dict[str, Expected]:
        """Each matrix instruction, 32 values of K, cuts the running sum at 2**-13 of itself, and cutting adds up; a
        running sum hardly exceeds 4 times the root of its squared terms."""
        x, weight = dequantized(case.x, case.format, rows=1), dequantized(case.weight, case.format, rows=SCALE_BLOCK)
        steps = (SCALE_BLOCK if case.format == "fp8-block" else x.shape[1]) / 32
        atol = (steps * 4 * 2**-13 + 2**-16) * (x.square() @ weight.square().T).sqrt()
        return {"out": Expected(x @ weight.T, rtol=2**-8 * 1.01, atol=atol)}

    def run(self, case: Fp8Case, variant: Variant) -> None:
        fp8_gemm(case.x, case.weight, case.out, format=case.format, variant=variant)

    def fallback(self, case: Fp8Case) -> None:
        x, weight = dequantized(case.x, case.format, rows=1), dequantized(case.weight, case.format, rows=SCALE_BLOCK)
        case.out.copy_(x.float() @ weight.float().T)


SPACES = {format: _space(format) for format in FORMATS}
FP8_GEMM = Fp8Gemm()
