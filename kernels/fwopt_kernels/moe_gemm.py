"""Product of routed rows with the weights of their experts, in blocks of rows that share an expert.

Variants carry the names and the meaning that vLLM's tuned files give them (`BLOCK_SIZE_M`, ..., `num_stages`), and as
there BLOCK_SIZE_K is cut to the inputs that share a scale, and e4m3 weights become the left operand where rows alone
would be too few for a Hopper matrix instruction. MXFP4 weights have a kernel of their own: `moe_tiles.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import moe_tiles, tiling
from fwopt_kernels.contract import Launch, Variant
from fwopt_kernels.moe_formats import Groups
from fwopt_kernels.moe_routing import Routing
from fwopt_kernels.moe_weights import BLOCK, Matrix
from fwopt_kernels.rounding import INTERPRETED, dot, to_bf16
from fwopt_kernels.row_formats import require_packed

_BF16_128 = tl.constexpr(0x4300)


@triton.jit
def _half(pair, HIGH: tl.constexpr):
    """One of two bfloat16 numbers that lie in 32 bits."""
    return ((pair >> 16) if HIGH else pair).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _nibble(byte, HIGH: tl.constexpr):
    """One of the two numbers of a byte, less 8: behind the exponent of 128 the number is bfloat16's own mantissa."""
    number = ((byte >> 4) if HIGH else (byte & 0xF)).to(tl.int16)
    if INTERPRETED:
        return number.to(tl.float32) - 8.0
    else:
        return (number | _BF16_128).to(tl.bfloat16, bitcast=True) - 136.0


@triton.jit
def _scale(w_scale, column, first, step, scale_row, scale_column, FORMAT: tl.constexpr, BLOCK_SIZE_N: tl.constexpr):
    """Of the weights of a step; one number where all columns share a block."""
    w_scale += step * scale_column
    if FORMAT == "w4a16":
        return tl.load(w_scale + column * scale_row).to(tl.float32)
    elif BLOCK_SIZE_N <= 128:
        return tl.load(w_scale + first // 128 * scale_row)
    else:
        return tl.load(w_scale + column // 128 * scale_row)


@triton.jit
def _scaled(total, x_step, w_step, SWAP: tl.constexpr, BLOCK_SIZE_N: tl.constexpr):
    if BLOCK_SIZE_N > 128:
        total *= w_step[:, None] if SWAP else w_step[None, :]
    else:
        x_step *= w_step
    return total * (x_step[None, :] if SWAP else x_step[:, None])


@triton.jit
def _grouped(
    x, weights, out, x_scale, w_scale, bias, pairs, experts, padded, blocks, outputs, inputs, count, top_k,
    x_stride, expert_stride, weights_stride, out_stride, x_scale_stride, scale_expert, scale_row, scale_column,
    FORMAT: tl.constexpr, BIASED: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr, BLOCK_SIZE_N: tl.constexpr, BLOCK_SIZE_K: tl.constexpr, GROUP_SIZE_M: tl.constexpr,
):  # fmt: skip
    """Row `pair` of out = row `pair // top_k` of x times its expert's weights, and bias; SHARED steps share a scale.

    `inputs` and the strides of x and weights count words: a bfloat16 or an e4m3; in `w4a16` two numbers are a word.
    """
    block, panel = tiling.place(blocks, tl.cdiv(outputs, BLOCK_SIZE_N), GROUP_SIZE_M)
    if block * BLOCK_SIZE_M >= tl.load(padded):
        return
    words: tl.constexpr = BLOCK_SIZE_K // 2 if FORMAT == "w4a16" else BLOCK_SIZE_K
    zero: tl.constexpr = 0 if FORMAT == "w4a16" else 0.0
    expert = tl.load(experts + block).to(tl.int64)
    pair = tl.load(pairs + block * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)).to(tl.int64)
    real = pair < count
    column = panel * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    inside = column % outputs  # of a last panel that is not full, some columns twice
    word = tl.arange(0, words)
    x += (pair // top_k * x_stride)[:, None] + word[None, :]
    weights += expert * expert_stride + (inside.to(tl.int64) * weights_stride)[:, None] + word[None, :]
    w_scale += expert * scale_expert
    x_scale += pair // top_k * x_scale_stride
    total = tl.zeros([BLOCK_SIZE_M, BLOCK_SIZE_N], tl.float32)
    if SWAP:
        total = tl.trans(total)
    if FORMAT != "bf16":
        w_step = _scale(w_scale, inside, panel * BLOCK_SIZE_N, 0, scale_row, scale_column, FORMAT, BLOCK_SIZE_N)
    if FORMAT == "fp8-block":
        x_step = tl.load(x_scale, mask=real, other=0.0)
    steps = tl.cdiv(inputs, words)
    for step in range(steps):
        left = word[None, :] < inputs - step * words
        xs = tl.load(x, mask=real[:, None] if EVEN else real[:, None] & left, other=zero)
        ws = tl.load(weights) if EVEN else tl.load(weights, mask=left, other=zero)
        x += words
        weights += words
        nothing = tl.zeros(total.shape, tl.float32)
        following = tl.minimum(step + 1, steps - 1) // SHARED  # scales a step ahead of their use
        if FORMAT == "bf16":
            total = dot(xs, tl.trans(ws), total)
        elif FORMAT == "w4a16":
            part = dot(_half(xs, False), tl.trans(_nibble(ws, False)), nothing)
            part = dot(_half(xs, True), tl.trans(_nibble(ws, True)), part)
            total += part * w_step[None, :]
            w_step = _scale(
                w_scale, inside, panel * BLOCK_SIZE_N, following, scale_row, scale_column, FORMAT, BLOCK_SIZE_N
            )
        else:
            part = dot(ws, tl.trans(xs), nothing) if SWAP else dot(xs, tl.trans(ws), nothing)
            total += _scaled(part, x_step, w_step, SWAP, BLOCK_SIZE_N)
            x_step = tl.load(x_scale + following, mask=real, other=0.0)
            w_step = _scale(
                w_scale, inside, panel * BLOCK_SIZE_N, following, scale_row, scale_column, FORMAT, BLOCK_SIZE_N
            )
    if SWAP:
        total = tl.trans(total)
    if BIASED:
        total += tl.load(bias + expert * outputs + inside).to(tl.float32)[None, :]
    out += (pair * out_stride)[:, None] + column[None, :]
    tl.store(out, to_bf16(total), mask=real[:, None] & (column < outputs)[None, :])


def _constants(format: str, group: int, biased: bool, chosen: Variant) -> dict[str, Any]:
    rows, columns, inputs = (chosen[f"BLOCK_SIZE_{name}"] for name in "MNK")
    step = inputs if format == "bf16" else min(inputs, group)
    return {
        "FORMAT": format,
        "BIASED": biased,
        "SHARED": max(group // step, 1),
        "SWAP": format == "fp8-block" and rows < 64 <= columns,
        **dict(chosen.constants),
        "BLOCK_SIZE_K": step,
    }


def grouped(
    x: Tensor | Groups, weights: Matrix, bias: Tensor | None, routing: Routing, out: Tensor, *, count: int, top_k: int,
    variant: Variant,
) -> None:  # fmt: skip
    """Rows `pair` of out (count, outputs) = row `pair // top_k` of x @ the expert's weights, transposed, plus its bias
    (experts, outputs).

    Pairs without an expert are not written. x bfloat16, or groups in e4m3 for `fp8-block`.
    """
    if weights.format == "mxfp4":
        assert isinstance(x, Tensor)
        moe_tiles.grouped(x, weights, bias, routing, out, count=count, top_k=top_k, variant=variant)
        return
    values, x_scale = (x.values, x.scale) if isinstance(x, Groups) else (x, None)
    require_packed(x=values, weights=weights.values, out=out)
    if weights.format == "w4a16":
        values = values.view(torch.int32)
    constants = _constants(weights.format, weights.group, bias is not None, variant)
    inputs = weights.values.shape[2]
    words = constants["BLOCK_SIZE_K"] // (2 if weights.format == "w4a16" else 1)
    blocks = len(routing.experts)
    scale, scale_strides = (out, (0, 0, 0)) if weights.scale is None else (weights.scale, weights.scale.stride())
    _grouped[(blocks * triton.cdiv(weights.outputs, variant["BLOCK_SIZE_N"]),)](
        values, weights.values, out, out if x_scale is None else x_scale, scale,
        out if bias is None else bias, routing.pairs, routing.experts, routing.padded, blocks, weights.outputs, inputs,
        count, top_k,
        values.stride(0), weights.values.stride(0), weights.values.stride(1), out.stride(0),
        0 if x_scale is None else x_scale.stride(0), *scale_strides, EVEN=inputs % words == 0,
        **constants, **variant.options,
    )  # fmt: skip


def launch(format: str, variant: Variant) -> Launch:
    """For inputs that BLOCK_SIZE_K divides, with scales in groups of 128."""
    if format == "mxfp4":
        return moe_tiles.launch(variant)
    narrow, wide = {"bf16": ("*bf16", "*bf16"), "fp8-block": ("*fp8e4nv", "*fp8e4nv"), "w4a16": ("*i32", "*u8")}[format]
    scale = "*bf16" if format == "w4a16" else "*fp32"
    pointers = {
        "x": narrow, "weights": wide, "out": "*bf16", "x_scale": "*fp32", "w_scale": scale, "bias": "*bf16",
        "pairs": "*i32", "experts": "*i32", "padded": "*i32",
    }  # fmt: skip
    sizes = ("blocks", "outputs", "inputs", "count", "top_k")
    strides = ("x", "expert", "weights", "out", "x_scale")
    signature = {
        **pointers, **dict.fromkeys(sizes, "i32"),
        **{f"{name}_stride": "i32" for name in strides},
        "scale_expert": "i32", "scale_row": "i32", "scale_column": "i32",
    }  # fmt: skip
    aligned = (
        *pointers,
        "outputs",
        "inputs",
        "x_stride",
        "expert_stride",
        "weights_stride",
        "out_stride",
        "x_scale_stride",
    )
    constants = {**_constants(format, BLOCK, False, variant), "EVEN": True}
    if format != "bf16":
        constants["scale_column"] = 1
        del signature["scale_column"]
    return Launch(_grouped, signature, constants, aligned, variant.options, "product")
