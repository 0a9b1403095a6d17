"""What matrix products share: the order of their tiles, and K divided among programs.

Each part of K writes its float32 sums, and a second kernel adds them in their order. No atomics, so a result is the
same each time, and a row's does not depend on the other rows.
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
    """A tile (m, n) of float32 sums: bfloat16 into the result, or float32 into this program's part of it."""
    at = m.to(tl.int64)[:, None] * out_stride + n[None, :]
    mask = (m < rows)[:, None] & (n < columns)[None, :]
    if SPLIT_K > 1:
        tl.store(out + tl.program_id(1).to(tl.int64) * part_stride + at, sums, mask=mask)
    else:
        tl.store(out + at, to_bf16(sums), mask=mask)


@triton.jit
def _add(partial, out, rows, columns, out_stride, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """One program a block of a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < columns
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(partial + (part * rows + row) * columns + at, mask=mask, other=0.0)
    tl.store(out + row * out_stride + at, to_bf16(total), mask=mask)


def workspace(parts: int, out: Tensor) -> Tensor:
    """Where the programs put their sums: (parts, rows, columns) float32."""
    return torch.empty((parts, *out.shape), dtype=torch.float32, device=out.device)


def add(partial: Tensor, out: Tensor) -> None:
    """out (rows, columns) bfloat16 = the parts' sum."""
    parts, rows, columns = partial.shape
    _add[(rows, triton.cdiv(columns, _BLOCK))](
        partial, out, rows, columns, out.stride(0), PARTS=parts, BLOCK=_BLOCK, **PLAIN
    )


def launches(variant: Variant) -> tuple[Launch, ...]:
    """The second kernel, where the variant has one."""
    if variant["SPLIT_K"] == 1:
        return ()
    signature = {"partial": "*fp32", "out": "*bf16", "rows": "i32", "columns": "i32", "out_stride": "i32"}
    constants = {"PARTS": variant["SPLIT_K"], "BLOCK": _BLOCK}
    return (Launch(_add, signature, constants, ("partial", "out", "columns", "out_stride"), PLAIN, "parts added"),)
