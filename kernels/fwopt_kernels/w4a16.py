"""y = x @ W^T with 4-bit weights in groups along K, whole numbers or MXFP4, and bfloat16 activations.

The product is computed as (W x^T)^T: weights are dequantized in registers, where Hopper's matrix unit takes its first
operand only, and a handful of tokens fills its second one, which may be 8 wide. Layout: `w4_format.py`;
kernels: `w4_kernel.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from fwopt_kernels import mxfp4, persistent, row_formats, tiling, w4_format, w4_kernel
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
from fwopt_kernels.w4_format import StoredW4, W4Weights

_GROUPS = {"g128": 128, "g64": 64, "g32": 32, "channel": 0, "g128-zero": 128, "mxfp4": mxfp4.GROUP}


def w4a16(x: Tensor, weights: W4Weights, out: Tensor, *, variant: Variant | None = None) -> None:
    """out (M, N) = x (M, K) @ W^T; x and out bfloat16 with unit stride along their rows."""
    if variant == FALLBACK:
        fallback(x, weights, out)
        return
    rows, columns = out.shape
    row_formats.require_packed(x=x, out=out)
    if x.shape != (rows, weights.inner) or columns != weights.columns:
        raise ValueError(
            f"w4a16: weights are ({weights.columns}, {weights.inner}), x {tuple(x.shape)}, out {tuple(out.shape)}"
        )
    chosen = variant or SPACES["g128" if weights.group == 128 else "channel"].default_for({"m": rows})
    if dict(chosen.constants).get("LATE_SCALE") and weights.group < chosen["BLOCK_K"]:
        raise ValueError(f"w4a16: {chosen.id} scales sums, which needs groups of BLOCK_K or more; got {weights.group}")
    if rows > 0:
        launch(x, weights, out, variant=chosen)


def launch(x: Tensor, weights: W4Weights, out: Tensor, *, variant: Variant, multiprocessors: int | None = None) -> None:
    """`w4a16` of tensors and a variant that it lets pass. `multiprocessors`: the device's."""
    if dict(variant.constants).get(persistent.AXIS):
        _several_tiles(x, weights, out, variant, multiprocessors or persistent.multiprocessors(out.device))
    else:
        _one_tile(x, weights, out, variant)


def _one_tile(x: Tensor, weights: W4Weights, out: Tensor, variant: Variant) -> None:
    rows, columns = out.shape
    parts = variant["SPLIT_K"]
    partial = out if parts == 1 else tiling.workspace(parts, out)
    codes, zeros = weights.codes, weights.scales if weights.zeros is None else weights.zeros
    grid = (triton.cdiv(rows, variant["BLOCK_M"]) * triton.cdiv(columns, variant["BLOCK_N"]), parts)
    w4_kernel.one_tile[grid](
        x, codes, weights.scales, zeros, partial, rows, columns, weights.inner, codes.shape[0],
        x.stride(0), codes.stride(0), weights.scales.stride(0), zeros.stride(0), partial.stride(-2), rows * columns,
        GROUP=weights.group, ZERO=weights.zeros is not None, MX=weights.mx,
        EVEN=weights.inner % variant["BLOCK_K"] == 0, **_constants(variant), **variant.options,
    )  # fmt: skip
    if parts > 1:
        tiling.add(partial, out)


def _several_tiles(x: Tensor, weights: W4Weights, out: Tensor, variant: Variant, multiprocessors: int) -> None:
    """A program a multiprocessor: its registers hold no second one."""
    rows, columns = out.shape
    tiles = triton.cdiv(rows, variant["BLOCK_M"]) * triton.cdiv(columns, variant["BLOCK_N"])
    plan = persistent.schedule(variant, tiles, triton.cdiv(weights.inner, variant["BLOCK_K"]), multiprocessors)
    partial = persistent.workspace(plan, variant, out, torch.float32)
    codes, zeros = weights.codes, weights.scales if weights.zeros is None else weights.zeros
    w4_kernel.several_tiles[(plan.programs,)](
        x, codes, weights.scales, zeros, out, partial, rows, columns, weights.inner, codes.shape[0],
        x.stride(0), codes.stride(0), weights.scales.stride(0), zeros.stride(0), out.stride(0), plan.whole,
        GROUP=weights.group, ZERO=weights.zeros is not None, MX=weights.mx,
        EVEN=weights.inner % variant["BLOCK_K"] == 0, SHARES=plan.whole < tiles, **_constants(variant),
        **variant.options,
    )  # fmt: skip
    persistent.join(partial, out, plan, variant)


def _constants(variant: Variant) -> dict[str, int]:
    """Of the kernel that the variant runs."""
    given = {"LATE_SCALE": 0, **dict(variant.constants)}
    return persistent.constants(given) if given.pop(persistent.AXIS, 0) else given


def fallback(x: Tensor, weights: W4Weights, out: Tensor) -> None:
    out.copy_(x @ w4_format.unpacked(weights, torch.bfloat16).T)


def allowed(v: Variant) -> bool:
    """What can win on Hopper."""
    rows, channels, decode = v["BLOCK_M"], v["BLOCK_N"] // v.num_warps, v["BLOCK_M"] <= 32
    late = dict(v.constants).get("LATE_SCALE", 0)
    return (
        channels in (16, 32)  # of a warp: a warpgroup's instruction has 64, and twice as many fit its registers
        and (v["BLOCK_K"] == 128 or (decode and channels == 16))  # a deeper block takes as many registers again
        and v["SPLIT_K"] <= (8 if decode else 4 if rows == 64 else 1)  # larger batches have blocks enough
        and (v["GROUP_M"] == 1 or (rows >= 64 and v["SPLIT_K"] == 1))  # a batch of one block of rows has no order
        and (v.num_stages >= 4 if decode else v.num_stages <= 4)  # decoding waits for memory, prefill for the product
        and v["BLOCK_N"] * v["BLOCK_K"] // 2 * (v.num_stages - 1) <= 2**16  # bytes on their way: enough by far
        and not (rows == 128 and channels == 32 and v.num_warps == 4)  # spills: 64 bytes of stack a thread
        and not (late and (not decode or v["BLOCK_K"] > 128))  # its cost grows with the rows
        and (v[persistent.AXIS] == 0 or (rows == v["BLOCK_N"] == 128 and channels == 16))  # larger tiles spill there,
        # smaller ones leave little over; few rows wait for memory, and parts of K fill the GPU
    )


def _space(format: str) -> Space:
    """Where a block of K is one group, its scale may multiply the sums; it costs BLOCK_M multiplications a channel
    instead of half of BLOCK_K."""
    axes = {
        "BLOCK_M": (8, 16, 32, 64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (128, 256), "SPLIT_K": (1, 2, 4, 8),
        "GROUP_M": (1, 8), persistent.AXIS: (0, persistent.WHOLE, persistent.SHARED),
        NUM_WARPS: (4, 8), NUM_STAGES: (3, 4, 6),
    }  # fmt: skip
    constants = {"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_K": 128, "SPLIT_K": 4, "GROUP_M": 1, persistent.AXIS: 0}
    large = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "SPLIT_K": 1, "GROUP_M": 8, persistent.AXIS: 0}
    if _GROUPS[format] == 128:
        axes["LATE_SCALE"], constants["LATE_SCALE"], large["LATE_SCALE"] = (0, 1), 1, 0
    prefill = Large(lambda shape: shape["m"], 64, variant(8, 3, **large))
    return Space(axes, variant(4, 4, **constants), allowed, prefill)


@dataclass(frozen=True)
class W4Case:
    x: Tensor
    stored: StoredW4
    weights: W4Weights
    out: Tensor

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.to(torch.float64)}


class W4A16:
    """The operator `w4a16`; shape: m, n, k. A group of `channel` is the whole of K; `-zero` has zero points."""

    name = "w4a16"
    formats: tuple[str, ...] = tuple(_GROUPS)
    dimensions = ("m", "n", "k")

    def space(self, format: str) -> Space:
        return SPACES[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        several = dict(variant.constants).get(persistent.AXIS, 0)
        whole = several or variant["SPLIT_K"] == 1
        signature = {
            "x": "*bf16", "codes": "*u8", "scales": "*i32", "zeros": "*i32", "out": "*bf16" if whole else "*fp32",
            **({"partial": "*fp32"} if several else {}),
            "rows": "i32", "columns": "i32", "inner": "i32", "n_tiles": "i32", "x_stride": "i32", "tile_stride": "i32",
            "scale_stride": "i32", "zero_stride": "i32", "out_stride": "i32",
            **({"whole": "i32"} if several else {"part_stride": "i32"}),
        }  # fmt: skip
        constants = {"GROUP": _GROUPS[format], "ZERO": format.endswith("-zero"), "MX": format == "mxfp4"}
        constants |= {"EVEN": True, **_constants(variant)}
        if several:
            constants["SHARES"] = several == persistent.SHARED
        aligned = tuple(name for name in signature if name not in ("rows", "n_tiles", "whole"))
        kernel = w4_kernel.several_tiles if several else w4_kernel.one_tile
        product = Launch(kernel, signature, constants, aligned, variant.options)
        return (product, *(persistent if several else tiling).launches(variant))

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        """Codes, scales and zero points as a checkpoint stores them."""
        m, n, k = (shape[name] for name in self.dimensions)
        groups = k // (_GROUPS[format] or k)
        zeros = 4 * -(-n // 8) * groups if format.endswith("-zero") else 0
        scales = n * groups * (1 if format == "mxfp4" else 2)
        return Work(2 * m * (k + n) + n * k // 2 + scales + zeros, 2 * m * n * k)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> W4Case:
        m, n, k = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)
        x = row_formats.strided(m, k, padding, random, device)
        groups = k // (_GROUPS[format] or k)
        codes = torch.randint(0, 16, (n, k), generator=random)
        zeros = torch.randint(0, 16, (n, groups), generator=random) if format.endswith("-zero") else None
        if format == "mxfp4":
            exponents = torch.randint(117, 122, (n, groups), generator=random, dtype=torch.uint8)
            stored = StoredW4((codes[:, ::2] | codes[:, 1::2] << 4).to(device, torch.uint8), exponents.to(device), None)
        else:
            scale = (0.01 * torch.rand(n, groups, generator=random) + 0.005).to(torch.bfloat16)
            stored = w4_format.pack(codes.to(device), scale.to(device), None if zeros is None else zeros.to(device))
        return W4Case(x, stored, w4_format.repack(stored), row_formats.poisoned("bf16", m, n, device).values)

    def reference(self, case: W4Case) -> dict[str, Expected]:
        """Weights are rounded to bfloat16 when dequantized, each by 2**-8 of itself at most, to either side: of the
        root of the squared terms' sum, 8 times the standard deviation of that. float32 sums lose far less. MXFP4's
        are exact: of its sums each matrix instruction, 16 values of K, cuts 2**-23 of a running sum, which hardly
        exceeds 4 times that root."""
        weights, x = w4_format.dequantized(case.stored, torch.float64), case.x.double()
        spread = (x.square() @ weights.square().T).sqrt()
        unit = (x.shape[1] / 16 * 4 + 8) * 2**-23 if case.stored.mx else 8 * 2**-8 / 3**0.5
        return {"out": Expected(x @ weights.T, rtol=2**-8 * 1.01, atol=unit * spread)}

    def run(self, case: W4Case, variant: Variant) -> None:
        w4a16(case.x, case.weights, case.out, variant=variant)

    def fallback(self, case: W4Case) -> None:
        fallback(case.x, case.weights, case.out)


SPACES = {format: _space(format) for format in _GROUPS}
W4A16_GEMM = W4A16()
