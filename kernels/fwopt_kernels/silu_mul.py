"""silu(gate) * up, quantized per row in the same kernel.

As vLLM's `silu_and_mul`: gate and up lie side by side in one row of 2 * columns; silu(gate) is rounded to bfloat16
before the product, and so is the product. With a limit it is gpt-oss's activation, (up + 1) * gate * sigmoid(1.702 *
gate), gate cut at the limit above and up on both sides, rounded once (as transformers 5.24.0 defines it, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import row_formats
from fwopt_kernels.contract import FALLBACK, NUM_WARPS, Expected, Launch, Space, Variant, Work, variant
from fwopt_kernels.rounding import quantize, row_scale, through_bf16, to_bf16
from fwopt_kernels.row_formats import ROW_FORMATS, TRITON_TYPES, Rows

SLOPE = 1.702
"""Of the sigmoid in gpt-oss's activation."""
_SLOPE = tl.constexpr(SLOPE)


@triton.jit
def _product(x, columns, at, mask, LIMIT: tl.constexpr):
    """silu(gate) * up, LIMIT above 0: gpt-oss's activation, as bfloat16 represents it, in float32."""
    gate = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + columns + at, mask=mask, other=0.0).to(tl.float32)
    if LIMIT > 0:
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        return through_bf16((up + 1.0) * (gate / (1.0 + tl.exp(gate * -_SLOPE))))
    else:
        return through_bf16(through_bf16(gate / (1.0 + tl.exp(-gate))) * up)


@triton.jit
def _by_block(
    x, out, scale, columns, x_stride, out_stride, FORMAT: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a block of a row: for bfloat16, which needs nothing of the rest of its row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < columns
    tl.store(out + row * out_stride + at, to_bf16(_product(x + row * x_stride, columns, at, mask, LIMIT)), mask=mask)


@triton.jit
def _row_in_registers(
    x, out, scale, columns, x_stride, out_stride, FORMAT: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a row, read once; needs columns <= BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < columns
    values = _product(x + row * x_stride, columns, at, mask, LIMIT)
    step = row_scale(tl.max(tl.abs(values), 0), FORMAT)
    tl.store(scale + row, step)
    tl.store(out + row * out_stride + at, quantize(values, 1.0 / step, FORMAT), mask=mask)


@triton.jit
def _row_in_blocks(
    x, out, scale, columns, x_stride, out_stride, FORMAT: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a row of any length: the largest magnitude, then the values, computed twice and never stored."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    out += row * out_stride
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(_product(x, columns, at, at < columns, LIMIT)))
    step = row_scale(tl.max(largest, 0), FORMAT)
    tl.store(scale + row, step)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < columns
        tl.store(out + at, quantize(_product(x, columns, at, mask, LIMIT), 1.0 / step, FORMAT), mask=mask)


def silu_mul(x: Tensor, out: Rows, *, limit: float | None = None, variant: Variant | None = None) -> None:
    """out = silu(x[:, :columns]) * x[:, columns:] in out's format; x (rows, 2 * columns) bfloat16, unit stride.

    `limit`, above 0: gpt-oss's activation instead.
    """
    if limit is not None and limit <= 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    if variant == FALLBACK:
        SILU_MUL.fallback(SiluCase(x, out, limit))
        return
    rows, columns = out.values.shape
    row_formats.require_packed(x=x, out=out.values)
    if rows == 0:
        return
    chosen = variant or SPACE.default
    block = chosen["BLOCK"]
    if out.format == "bf16":
        kernel, grid = _by_block, (rows, triton.cdiv(columns, block))
    else:
        kernel, grid = (_row_in_registers if columns <= block else _row_in_blocks), (rows, 1)
    kernel[grid](
        x, out.values, out.values if out.scale is None else out.scale, columns, x.stride(0), out.values.stride(0),
        FORMAT=out.format, LIMIT=limit or 0.0, BLOCK=block, **chosen.options,
    )  # fmt: skip


def activation(x: Tensor, limit: float | None) -> Tensor:
    """What the operator is, of x (rows, 2 * columns) in x's dtype."""
    gate, up = x.chunk(2, -1)
    if limit is None:
        return F.silu(gate) * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(SLOPE * gate))


def _allowed(v: Variant) -> bool:
    """8 to 32 values a thread of gate and of up each: at least one 16-byte load, no more than registers hold."""
    return 8 <= v["BLOCK"] // (32 * v.num_warps) <= 32


SPACE = Space(
    {"BLOCK": (1024, 2048, 4096, 8192, 16384), NUM_WARPS: (1, 2, 4, 8, 16, 32)},
    default=variant(8, 1, BLOCK=4096),
    allowed=_allowed,
)


@dataclass(frozen=True)
class SiluCase:
    x: Tensor
    out: Rows
    limit: float | None = None

    def results(self) -> dict[str, Tensor]:
        return self.out.results()


class SiluMul:
    """The operator `silu_mul`; shape: rows, columns (of the result)."""

    name = "silu_mul"
    formats: tuple[str, ...] = ROW_FORMATS
    dimensions = ("rows", "columns")

    def space(self, format: str) -> Space:
        return SPACE

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        signature = {
            "x": "*bf16", "out": TRITON_TYPES[format], "scale": "*bf16" if format == "bf16" else "*fp32",
            "columns": "i32", "x_stride": "i32", "out_stride": "i32",
        }  # fmt: skip
        constants = {"FORMAT": format, "LIMIT": 0.0, "BLOCK": variant["BLOCK"]}
        quantized = ((_row_in_registers, "row in registers"), (_row_in_blocks, "row in blocks"))
        kernels = ((_by_block, "block"),) if format == "bf16" else quantized
        return tuple(
            Launch(kernel, signature, constants, tuple(signature), variant.options, label) for kernel, label in kernels
        )

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        rows, columns = (shape[name] for name in self.dimensions)
        return Work(4 * rows * columns + row_formats.row_bytes(format, rows, columns), 0)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> SiluCase:
        rows, columns = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)
        x = row_formats.strided(rows, 2 * columns, padding, random, device) * 2
        x = torch.cat([x, x.new_full((rows, padding), float("nan"))], 1)[:, : 2 * columns]
        return SiluCase(x, row_formats.poisoned(format, rows, columns, device))

    def reference(self, case: SiluCase) -> dict[str, Expected]:
        return row_formats.expected(case.out.format, activation(case.x.double(), case.limit))

    def run(self, case: SiluCase, variant: Variant) -> None:
        silu_mul(case.x, case.out, limit=case.limit, variant=variant)

    def fallback(self, case: SiluCase) -> None:
        if case.limit is None:
            gate, up = case.x.chunk(2, -1)
            row_formats.write(case.out, F.silu(gate) * up)
        else:
            row_formats.write(case.out, activation(case.x.float(), case.limit).to(torch.bfloat16))


SILU_MUL = SiluMul()
