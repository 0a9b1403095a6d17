"""RMSNorm, with the residual added first and the result quantized per row, in one kernel.

As vLLM's `fused_add_rms_norm` and `rms_norm_dynamic_per_token_quant`: the sum `x + residual` is rounded to bfloat16
and written back to `residual`; the normalised value is rounded to bfloat16 before and after the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import row_formats
from fwopt_kernels.contract import FALLBACK, NUM_WARPS, Expected, Launch, Space, Variant, Work, variant
from fwopt_kernels.rounding import quantize, row_scale, through_bf16, to_bf16
from fwopt_kernels.row_formats import ROW_FORMATS, TRITON_TYPES, Rows


@triton.jit
def _summed(x, residual, at, mask):
    """x + residual as bfloat16 represents it, in float32."""
    sums = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    return through_bf16(sums + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def _normalized(sums, factor, weight, at, mask):
    """The row's values times 1/rms and the weight, rounded after each, in float32."""
    w = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    return through_bf16(through_bf16(sums * factor) * w)


@triton.jit
def _row_in_registers(
    x, residual, weight, out, scale, columns, x_stride, residual_stride, out_stride, eps,
    FORMAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, read once; needs columns <= BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    residual += row * residual_stride
    out += row * out_stride
    at = tl.arange(0, BLOCK)
    mask = at < columns
    sums = _summed(x, residual, at, mask)
    tl.store(residual + at, to_bf16(sums), mask=mask)
    factor = tl.rsqrt(tl.sum(sums * sums, 0) / columns + eps)
    values = _normalized(sums, factor, weight, at, mask)
    if FORMAT == "bf16":
        tl.store(out + at, to_bf16(values), mask=mask)
    else:
        step = row_scale(tl.max(tl.abs(values), 0), FORMAT)
        tl.store(scale + row, step)
        tl.store(out + at, quantize(values, 1.0 / step, FORMAT), mask=mask)


@triton.jit
def _row_in_blocks(
    x, residual, weight, out, scale, columns, x_stride, residual_stride, out_stride, eps,
    FORMAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row of any length: sums and their squares, then the largest magnitude, then the values."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    residual += row * residual_stride
    out += row * out_stride
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < columns
        sums = _summed(x, residual, at, mask)
        tl.store(residual + at, to_bf16(sums), mask=mask)
        squares += sums * sums
    factor = tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    tl.debug_barrier()  # the sums are read back below, perhaps by another thread than wrote them
    step = 1.0
    if FORMAT != "bf16":
        largest = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < columns
            sums = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(_normalized(sums, factor, weight, at, mask)))
        step = row_scale(tl.max(largest, 0), FORMAT)
        tl.store(scale + row, step)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < columns
        sums = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        values = _normalized(sums, factor, weight, at, mask)
        if FORMAT == "bf16":
            tl.store(out + at, to_bf16(values), mask=mask)
        else:
            tl.store(out + at, quantize(values, 1.0 / step, FORMAT), mask=mask)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, out: Rows, *, eps: float = 1e-6, variant: Variant | None = None
) -> None:
    """residual += x, in place; out = rms_norm(residual) * weight in out's format.

    x, residual (rows, columns) bfloat16 with unit stride along columns; weight (columns,) bfloat16.
    """
    if variant == FALLBACK:
        RMS_NORM.fallback(NormCase(x, residual, weight, out, eps))
        return
    rows, columns = x.shape
    row_formats.require_packed(x=x, residual=residual, weight=weight, out=out.values)
    if rows == 0:
        return
    chosen = variant or SPACE.default
    kernel = _row_in_registers if columns <= chosen["BLOCK"] else _row_in_blocks
    kernel[(rows,)](
        x, residual, weight, out.values, out.values if out.scale is None else out.scale, columns,
        x.stride(0), residual.stride(0), out.values.stride(0), eps,
        FORMAT=out.format, BLOCK=chosen["BLOCK"], **chosen.options,
    )  # fmt: skip


def _allowed(v: Variant) -> bool:
    """8 to 64 values a thread: at least one 16-byte load, and no more than registers hold."""
    return 8 <= v["BLOCK"] // (32 * v.num_warps) <= 64


SPACE = Space(
    {"BLOCK": (1024, 2048, 4096, 8192, 16384), NUM_WARPS: (2, 4, 8, 16, 32)},
    default=variant(8, 1, BLOCK=4096),
    allowed=_allowed,
)


@dataclass(frozen=True)
class NormCase:
    x: Tensor
    residual: Tensor
    weight: Tensor
    out: Rows
    eps: float = 1e-6

    def results(self) -> dict[str, Tensor]:
        return {**self.out.results(), "residual": self.residual.to(torch.float64)}


class RmsNorm:
    """The operator `rms_norm`; shape: rows, columns."""

    name = "rms_norm"
    formats: tuple[str, ...] = ROW_FORMATS
    dimensions = ("rows", "columns")

    def space(self, format: str) -> Space:
        return SPACE

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        signature = {
            "x": "*bf16", "residual": "*bf16", "weight": "*bf16", "out": TRITON_TYPES[format],
            "scale": TRITON_TYPES["bf16"] if format == "bf16" else "*fp32",
            "columns": "i32", "x_stride": "i32", "residual_stride": "i32", "out_stride": "i32", "eps": "fp32",
        }  # fmt: skip
        aligned = tuple(name for name in signature if name != "eps")
        constants = {"FORMAT": format, "BLOCK": variant["BLOCK"]}
        both = ((_row_in_registers, "row in registers"), (_row_in_blocks, "row in blocks"))
        return tuple(Launch(kernel, signature, constants, aligned, variant.options, label) for kernel, label in both)

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        """The residual is read and written."""
        rows, columns = (shape[name] for name in self.dimensions)
        return Work(2 * (3 * rows + 1) * columns + row_formats.row_bytes(format, rows, columns), 0)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> NormCase:
        rows, columns = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)
        x, residual = (row_formats.strided(rows, columns, padding, random, device) for _ in range(2))
        weight = (1 + 0.3 * torch.randn(columns, generator=random)).to(torch.bfloat16).to(device)
        return NormCase(x, residual, weight, row_formats.poisoned(format, rows, columns, device))

    def reference(self, case: NormCase) -> dict[str, Expected]:
        sums = (case.x.double() + case.residual.double()).to(torch.bfloat16).double()
        values = sums * torch.rsqrt((sums * sums).mean(-1, keepdim=True) + case.eps) * case.weight.double()
        return {**row_formats.expected(case.out.format, values), "residual": Expected(sums)}

    def run(self, case: NormCase, variant: Variant) -> None:
        add_rms_norm(case.x, case.residual, case.weight, case.out, eps=case.eps, variant=variant)

    def fallback(self, case: NormCase) -> None:
        case.residual.add_(case.x)
        wide = case.residual.float()
        normal = (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + case.eps)).to(torch.bfloat16)
        row_formats.write(case.out, normal * case.weight)


RMS_NORM = RmsNorm()
