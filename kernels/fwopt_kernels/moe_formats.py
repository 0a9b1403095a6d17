"""Formats of the grouped product: names, random weights, and activations in e4m3 groups with a float32 scale for each
128, `max(amax, 1e-10) / 448`. What weights look like: `moe_weights.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.contract import PLAIN, Launch
from fwopt_kernels.moe_weights import BLOCK, Matrix, tiled
from fwopt_kernels.rounding import FP8_MAX, through_bf16, to_fp8

FORMATS: tuple[str, ...] = ("bf16", "fp8-block", "w4a16", "mxfp4")
VLLM_DTYPES: dict[str, str | None] = {"bf16": None, "fp8-block": "fp8_w8a8", "w4a16": "int4_w4a16"}
"""`dtype=` in the names of vLLM's tuned files; `fp8-block` also has `block_shape=[128,128]`. Without
`mxfp4`, for which vLLM has no such name (`_get_config_dtype_str`): its kernels for MXFP4 read no tuned file."""
_GROUPS = 4
_SMALLEST = 1e-10


def random_matrix(format: str, experts: int, outputs: int, inputs: int, random: torch.Generator) -> Matrix:
    """Products of normal activations are about normal. Groups of 128 where they divide the inputs, else of 32."""
    device, size = random.device, inputs**-0.5

    def uniform(*shape: int) -> Tensor:
        values: Tensor = torch.rand(*shape, generator=random, device=device) + 0.5
        return values

    if format in ("w4a16", "mxfp4"):
        group = 128 if inputs % 128 == 0 and format == "w4a16" else 32
        if inputs % group:
            raise ValueError(f"{format} needs inputs in groups of {group}, got {inputs}")

        def bytes_of(first: int, last: int, columns: int) -> Tensor:
            shape = (experts, outputs, columns)
            return torch.randint(first, last, shape, generator=random, device=device, dtype=torch.uint8)

        bytes_ = bytes_of(0, 256, inputs // 2)
        if format == "mxfp4":
            exponent = 127 + math.floor(math.log2(size / 2.9))
            return tiled(bytes_, bytes_of(exponent, exponent + 2, inputs // group))
        return Matrix(format, bytes_, (uniform(experts, outputs, inputs // group) * size / 4.6).to(torch.bfloat16))
    values = torch.randn(experts, outputs, inputs, generator=random, device=device)
    if format == "bf16":
        return Matrix(format, (values * size).to(torch.bfloat16), None)
    scale = uniform(experts, triton.cdiv(outputs, BLOCK), triton.cdiv(inputs, BLOCK)) * size / 64
    return Matrix(format, (values * 64).to(torch.float8_e4m3fn), scale)


@dataclass(frozen=True)
class Groups:
    """Rows quantized to e4m3, with a scale for each group of 128."""

    values: Tensor
    scale: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        scale = self.scale.to(dtype).repeat_interleave(BLOCK, 1)[:, : self.values.shape[1]]
        wide: Tensor = self.values.to(torch.float32).to(dtype) * scale
        return wide


@triton.jit
def _quantize_groups(
    x, out, scale, columns, x_stride, out_stride, scale_stride, SILU: tl.constexpr, BLOCK: tl.constexpr,
    GROUPS: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """A program some groups of a row, divided as torch does, to the last bit. SILU: of `silu(gate) * up`, up being
    `columns` behind gate."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < columns
    x += row * x_stride + at
    values = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        up = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        values = through_bf16(through_bf16(values / (1.0 + tl.exp(-values))) * up)
    step = tl.maximum(tl.max(tl.abs(values), 1), SMALLEST) * (1.0 / FP8_MAX)
    tl.store(scale + row * scale_stride + group, step, mask=group * BLOCK < columns)
    tl.store(
        out + row * out_stride + at,
        to_fp8(tl.div_rn(values, tl.broadcast_to(step[:, None], values.shape))),
        mask=inside,
    )


def quantized(x: Tensor, *, silu: bool) -> Groups:
    """Rows of x, or of silu(gate) * up of its two halves, in groups."""
    rows, columns = x.shape[0], x.shape[1] // (2 if silu else 1)
    groups = triton.cdiv(columns, BLOCK)
    out = Groups(
        torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device),
        torch.empty(rows, groups, dtype=torch.float32, device=x.device),
    )
    _quantize_groups[(rows, triton.cdiv(groups, _GROUPS))](
        x, out.values, out.scale, columns, x.stride(0), out.values.stride(0), out.scale.stride(0),
        SILU=silu, BLOCK=BLOCK, GROUPS=_GROUPS, SMALLEST=_SMALLEST, **PLAIN,
    )  # fmt: skip
    return out


def quantize_launch(*, silu: bool) -> Launch:
    strides = ("columns", "x_stride", "out_stride")
    signature = {"x": "*bf16", "out": "*fp8e4nv", "scale": "*fp32", **dict.fromkeys((*strides, "scale_stride"), "i32")}
    constants = {"SILU": silu, "BLOCK": BLOCK, "GROUPS": _GROUPS, "SMALLEST": _SMALLEST}
    aligned = ("x", "out", "scale", *strides)
    return Launch(_quantize_groups, signature, constants, aligned, PLAIN, "silu, quantize" if silu else "quantize")


def quantized_torch(values: Tensor) -> Groups:
    """The torch way, in float32."""
    columns = values.shape[1]
    padded = torch.nn.functional.pad(values.float(), (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = padded.abs().amax(-1).clamp(min=_SMALLEST) * (1 / 448)
    codes = (padded / scale.unsqueeze(-1)).clamp(-448, 448).flatten(1)[:, :columns]
    return Groups(codes.to(torch.float8_e4m3fn), scale)
