"""What matrix products share: the order of their tiles, and K divided among programs.

Each part of K writes its sums, float32 or int32, and a second kernel adds them in their order. No atomics, so a result
is the same each time, and a row's does not depend on the other rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.contract import PLAIN, Launch, Variant
from fwopt_kernels.rounding import to_bf16

_BLOCK = 512


@triton.jit
def place(m_blocks, n_blocks, GROUP_M: tl.constexpr):
    """Block of rows, block of columns of this program: GROUP_M blocks of rows pass over the columns together and share
    weights in the L2 cache."""
    program = tl.program_id(0)
    first = program // (GROUP_M * n_blocks) * GROUP_M
    size = tl.minimum(m_blocks - first, GROUP_M)
    within = program % (GROUP_M * n_blocks)
    return first + within % size, within // size


@triton.jit
def blocks(inner, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr):
    """First and last (exclusive) block of K of this program, which may have none."""
    count = tl.cdiv(inner, BLOCK_K)
    each = tl.cdiv(count, SPLIT_K)
    first = tl.minimum(tl.program_id(1) * each, count)
    return first, tl.minimum(first + each, count)


@triton.jit
def store(sums, out, m, n, rows, columns, out_stride, part_stride, SPLIT_K: tl.constexpr):
    """A tile (m, n) of sums: bfloat16 into the result, or as they are into this program's part of it."""
    at = m.to(tl.int64)[:, None] * out_stride + n[None, :]
    mask = (m < rows)[:, None] & (n < columns)[None, :]
    if SPLIT_K > 1:
        tl.store(out + tl.program_id(1).to(tl.int64) * part_stride + at, sums, mask=mask)
    else:
        tl.store(out + at, to_bf16(sums), mask=mask)


@triton.jit
def scaled(sums, by_row, by_channel):
    """Sums over all of K times their scales, in float32; in one order, so that parts of K change nothing of it."""
    return sums.to(tl.float32) * by_row * by_channel


@triton.jit
def _add(
    partial, x_scale, w_scale, out, rows, columns, x_scale_stride, w_scale_stride, out_stride,
    SCALED: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a block of a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < columns
    total = tl.zeros([BLOCK], partial.dtype.element_ty)
    for part in tl.static_range(PARTS):
        total += tl.load(partial + (part * rows + row) * columns + at, mask=mask, other=0)
    if SCALED:
        by_channel = tl.load(w_scale + at * w_scale_stride, mask=mask, other=0.0)
        total = scaled(total, tl.load(x_scale + row * x_scale_stride), by_channel)
    tl.store(out + row * out_stride + at, to_bf16(total), mask=mask)


def workspace(parts: int, out: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Where the programs put their sums: (parts, rows, columns)."""
    return torch.empty((parts, *out.shape), dtype=dtype, device=out.device)


def add(partial: Tensor, out: Tensor, scales: tuple[Tensor, Tensor] | None = None) -> None:
    """out (rows, columns) bfloat16 = the parts' sum, times scales by row and by column (one element: for all)."""
    parts, rows, columns = partial.shape
    x_scale, w_scale = scales or (out, out)
    _add[(rows, triton.cdiv(columns, _BLOCK))](
        partial, x_scale, w_scale, out, rows, columns, scale_stride(x_scale), scale_stride(w_scale), out.stride(0),
        SCALED=scales is not None, PARTS=parts, BLOCK=_BLOCK, **PLAIN,
    )  # fmt: skip


def scale_stride(scale: Tensor) -> int:
    """From one row's, or channel's, scale to the next one's; 0 where one holds for all."""
    return scale.stride(0) if scale.numel() > 1 else 0


def launches(variant: Variant, total: str = "*fp32", *, scaled: bool = False) -> tuple[Launch, ...]:
    """The second kernel, where the variant has one; `total`: the parts' type."""
    if variant["SPLIT_K"] == 1:
        return ()
    scale = "*fp32" if scaled else "*bf16"
    signature = {
        "partial": total, "x_scale": scale, "w_scale": scale, "out": "*bf16", "rows": "i32", "columns": "i32",
        "x_scale_stride": "i32", "w_scale_stride": "i32", "out_stride": "i32",
    }  # fmt: skip
    constants = {"SCALED": scaled, "PARTS": variant["SPLIT_K"], "BLOCK": _BLOCK}
    aligned = ("partial", "x_scale", "w_scale", "out", "columns", "out_stride")
    return (Launch(_add, signature, constants, aligned, PLAIN, "parts added"),)
