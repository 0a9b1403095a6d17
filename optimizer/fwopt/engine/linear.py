"""Linear layers in each weight format. All compute `x @ weight.T + bias` for x of shape (tokens, k)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt.errors import InputError
from fwopt.spec.candidate import Quantization
from fwopt_kernels.choice import Choices
from fwopt_kernels.row_formats import MULTIPLE_K as MULTIPLE_K_INT8
from fwopt_kernels.row_formats import int8_product
from fwopt_kernels.w4_format import GROUPS, MULTIPLE_K

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class Linear(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...


def make_linear(
    weight: Tensor, bias: Tensor | None, scheme: Quantization, device: torch.device, kernels: Choices | None = None
) -> Linear:
    """A layer for `weight` (n, k), converted to `scheme` and moved to `device`. `kernels`: by `fwopt_kernels` where it
    has the format."""
    weight = weight.to(device)
    bias = None if bias is None else bias.to(device)
    match scheme.kind:
        case "bf16" | "gguf" | "mxfp4":
            return _plain(weight, bias)
        case "int8":
            if kernels is None or weight.shape[1] % MULTIPLE_K_INT8:
                return Int8(weight, bias)
            from fwopt.engine.kernel_linear import KernelInt8  # needs Triton

            return KernelInt8(weight, bias, kernels)
        case "w4a16":
            if kernels is None or scheme.group_size not in GROUPS or weight.shape[1] % MULTIPLE_K:
                return Int4(weight, bias, scheme.group_size)
            from fwopt.engine.kernel_linear import KernelInt4  # needs Triton

            return KernelInt4(weight, bias, scheme.group_size, kernels)
        case "fp8" if scheme.scale == "tensor":
            return Fp8(weight, bias)
    raise InputError("the reference engine has FP8 with one scale a tensor, not in blocks; got fp8 (block)")


def _plain(weight: Tensor, bias: Tensor | None) -> Linear:
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _onednn():
        return Packed(weight, bias)
    return Plain(weight, bias)


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Plain:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Packed:
    """bf16 on a CPU, the weight in oneDNN's own layout: 1.6 times as fast as from rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def int8_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) whole numbers from -127 to 127 and (n, 1) scales, float32: their product is the weight."""
    scale = weight.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-8) / 127
    return (weight.float() / scale).round_(), scale


class Int8:
    """INT8 weights, one scale a row; activations quantized token by token as they come."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        levels, scale = int8_levels(weight)
        self.weight = levels.to(torch.int8).t().contiguous()
        self.scale, self.bias = scale.t().contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-8) / 127
        rows = (x / scale).round_().to(torch.int8)
        out = int8_product(rows, self.weight).float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            out += self.bias
        return out.to(x.dtype)


def int4_levels(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(n, groups, group) whole numbers from -8 to 7 and (n, groups, 1) scales, float32: their product is the weight."""
    n, k = weight.shape
    if k % group:
        raise InputError(f"w4a16 needs a group size that divides {k}, got {group}")
    grouped = weight.float().view(n, k // group, group)
    scale = grouped.abs().amax(dim=2, keepdim=True).clamp_(min=1e-8) / 7
    return (grouped / scale).round_().clamp_(-8, 7), scale


class Int4:
    """4-bit weights in groups along k, symmetric, two to a byte; multiplied in the activations' dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: int) -> None:
        n, k = weight.shape
        levels, scale = int4_levels(weight, group)
        self.dtype, self.bias, self.group, self.n = weight.dtype, bias, group, n
        self.packed = None
        if (
            weight.dtype == torch.bfloat16
            and weight.device.type == "cpu"
            and n % 16 == 0
            and group in (32, 64, 128, 256)
        ):
            unsigned = (levels + 8).view(n, k).to(torch.int32)
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)
            scales = scale.squeeze(2).t()
            self.scales = torch.stack((scales, torch.zeros_like(scales)), dim=2).contiguous().to(torch.bfloat16)
        else:
            even, odd = (levels + 8).view(n, k // 2, 2).to(torch.uint8).unbind(2)
            self.bytes = even | (odd << 4)
            self.scales = scale.to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales)
            return out if self.bias is None else out + self.bias
        return F.linear(x, self.unpacked(), self.bias)

    def unpacked(self) -> Tensor:
        levels = torch.stack((self.bytes & 15, self.bytes >> 4), dim=2).to(self.dtype) - 8
        return (levels.view(self.n, -1, self.group) * self.scales).view(self.n, -1)


class Fp8:
    """FP8 E4M3 weights and activations with one scale a tensor. Without FP8 units the same numbers are multiplied in
    the activations' dtype, which holds them exactly: there torch 2.13's `_scaled_mm` is right as well, but a plain
    loop (docs/engine.md)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.scale = weight.abs().amax().float().clamp_(min=1e-8) / FP8_MAX
        rounded = (weight.float() / self.scale).to(FP8)
        self.bias = bias
        self.weight = rounded if weight.is_cuda else None
        self.plain = None if weight.is_cuda else _plain(rounded.to(weight.dtype), None)

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax().float().clamp_(min=1e-8) / FP8_MAX
        rows = (x / scale).to(FP8)
        if self.weight is not None:
            out: Tensor = torch._scaled_mm(
                rows, self.weight.t(), scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=x.dtype
            )
            return out
        assert self.plain is not None
        product = (self.plain(rows.to(x.dtype)).float() * (scale * self.scale)).to(x.dtype)
        return product if self.bias is None else product + self.bias


def round_weight(weight: Tensor, scheme: Quantization) -> Tensor:
    """`weight` (n, k) as `scheme` would store it, in its own dtype: for experts in a format that no kernel takes."""
    match scheme.kind:
        case "int8":
            levels, scale = int8_levels(weight)
            return (levels * scale).to(weight.dtype)
        case "w4a16":
            levels, scale = int4_levels(weight, scheme.group_size)
            return (levels * scale).flatten(1).to(weight.dtype)
        case "fp8":
            raise InputError("the reference engine has FP8 with one scale a tensor, not in blocks; got fp8 (block)")
    return weight
