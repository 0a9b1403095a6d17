"""The grouped product with MXFP4 experts, whose weights lie in `w4_format`'s tiles.

As in `w4a16` each block is (W x^T)^T, the weights dequantized in registers: no weight goes back to shared memory, and a
handful of rows fills a matrix instruction. Variants have `moe_gemm`'s names; BLOCK_SIZE_K is a tile's 128 at least.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import mxfp4, tiling
from fwopt_kernels import w4_dequant as dequant
from fwopt_kernels.contract import Launch, Variant
from fwopt_kernels.moe_routing import Routing
from fwopt_kernels.moe_weights import Matrix
from fwopt_kernels.rounding import dot, to_bf16
from fwopt_kernels.row_formats import require_packed
from fwopt_kernels.w4_format import TILE_K

_FACTOR = tl.constexpr(2.0**mxfp4.SHIFT)


@triton.jit
def _grouped(
    x, codes, scales, bias, out, pairs, experts, padded, blocks, outputs, inputs, count, top_k, tiles,
    x_stride, codes_expert, tile_stride, scale_expert, scale_stride, out_stride, BIASED: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_SIZE_M: tl.constexpr, BLOCK_SIZE_N: tl.constexpr, BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
):  # fmt: skip
    """Row `pair` of out = row `pair // top_k` of x times its expert's weights, and bias."""
    block, panel = tiling.place(blocks, tl.cdiv(outputs, BLOCK_SIZE_N), GROUP_SIZE_M)
    if block * BLOCK_SIZE_M >= tl.load(padded):
        return
    expert = tl.load(experts + block).to(tl.int64)
    pair = tl.load(pairs + block * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)).to(tl.int64)
    real = pair < count
    tile = panel * (BLOCK_SIZE_N // 16) + tl.arange(0, BLOCK_SIZE_N // 16)
    inside = tl.arange(0, BLOCK_SIZE_K * 8)  # bytes of a step of 16 outputs
    four = panel * (BLOCK_SIZE_N // 4) + tl.arange(0, BLOCK_SIZE_N // 4)
    k = tl.arange(0, BLOCK_SIZE_K)
    scales += expert * scale_expert
    codes += expert * codes_expert
    codes += tl.where(tile < tiles, tile, 0).to(tl.int64)[:, None] * tile_stride + inside[None, :]
    x += (pair // top_k * x_stride)[:, None] + k[None, :]
    sums = tl.zeros([BLOCK_SIZE_N, BLOCK_SIZE_M], tl.float32)
    for step in range(tl.cdiv(inputs, BLOCK_SIZE_K)):
        if EVEN:
            q = tl.load(codes)
            xs = tl.load(x, mask=real[:, None], other=0.0)
        else:
            left = inputs - step * BLOCK_SIZE_K
            q = tl.load(codes, mask=(inside // 1024 * 128 < left)[None, :], other=0)
            xs = tl.load(x, mask=real[:, None] & (k < left)[None, :], other=0.0)
        weights = dequant.mxfp4(
            q, scales, scale_stride, step, inputs, four, four < tiles * 4, BLOCK_SIZE_N, BLOCK_SIZE_K
        )
        sums = dot(weights, tl.trans(xs), sums)
        codes += BLOCK_SIZE_K * 8
        x += BLOCK_SIZE_K
    column = panel * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    total = tl.trans(sums) * _FACTOR
    if BIASED:
        total += tl.load(bias + expert * outputs + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    out += (pair * out_stride)[:, None] + column[None, :]
    tl.store(out, to_bf16(total), mask=real[:, None] & (column < outputs)[None, :])


def _constants(chosen: Variant, *, biased: bool) -> dict[str, Any]:
    return {**dict(chosen.constants), "BLOCK_SIZE_K": max(chosen["BLOCK_SIZE_K"], TILE_K), "BIASED": biased}


def grouped(
    x: Tensor, weights: Matrix, bias: Tensor | None, routing: Routing, out: Tensor, *, count: int, top_k: int,
    variant: Variant,
) -> None:  # fmt: skip
    """As `moe_gemm.grouped`, for `mxfp4`."""
    require_packed(x=x, out=out)
    assert weights.scale is not None
    constants, codes, scales = _constants(variant, biased=bias is not None), weights.values, weights.scale
    blocks = len(routing.experts)
    _grouped[(blocks * triton.cdiv(weights.outputs, variant["BLOCK_SIZE_N"]),)](
        x, codes, scales, out if bias is None else bias, out, routing.pairs, routing.experts, routing.padded,
        blocks, weights.outputs, weights.inputs, count, top_k, codes.shape[1], x.stride(0), codes.stride(0),
        codes.stride(1), scales.stride(0), scales.stride(1), out.stride(0),
        EVEN=weights.inputs % constants["BLOCK_SIZE_K"] == 0, **constants, **variant.options,
    )  # fmt: skip


def launch(variant: Variant) -> Launch:
    """For inputs that BLOCK_SIZE_K divides, with biases, as gpt-oss has them."""
    pointers = {
        "x": "*bf16", "codes": "*u8", "scales": "*i32", "bias": "*bf16", "out": "*bf16", "pairs": "*i32",
        "experts": "*i32", "padded": "*i32",
    }  # fmt: skip
    sizes = ("blocks", "outputs", "inputs", "count", "top_k", "tiles")
    strides = ("x_stride", "codes_expert", "tile_stride", "scale_expert", "scale_stride", "out_stride")
    signature = {**pointers, **dict.fromkeys((*sizes, *strides), "i32")}
    constants = {**_constants(variant, biased=True), "EVEN": True}
    return Launch(
        _grouped, signature, constants, (*pointers, "outputs", "inputs", *strides), variant.options, "product"
    )
