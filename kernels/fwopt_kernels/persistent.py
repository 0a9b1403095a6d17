"""Matrix products by as many programs as a GPU runs at once, each of which works through several tiles.

Two schedules. `WHOLE`: program p computes tiles p, p + programs, ...; while it stores one, the next one's numbers are
on their way. `SHARED`, known as stream-K (Osama et al., arXiv 2301.03598): so as well, but the last one to two tiles a
program are divided evenly, by (tile, block of K); fewer tiles than programs are divided from the first one on. Whole
tiles are stored at once; sums of parts of tiles go to a workspace, and a second kernel adds them in the order of K. No
atomics: for one shape and variant results repeat to the bit. Where a tile is cut depends on how many there are, so in
`SHARED` a row's float32 sums depend on how many rows stand beside it: such variants are not batch-invariant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import tiling
from fwopt_kernels.contract import PLAIN, Launch, Variant
from fwopt_kernels.rounding import to_bf16

AXIS = "PERSIST"
WHOLE, SHARED = 1, 2
"""Values of the axis; 0: a program a tile."""
INTERPRETED_MULTIPROCESSORS = 3
"""Where there is no GPU."""
_ROWS = 8
"""Of a tile, that a program of the second kernel adds."""


@triton.jit
def begin(program, units, programs):
    """First unit of a program's share; a unit is a block of K of a tile, and the tiles' units follow each other."""
    return program * units // programs


@triton.jit
def pieces(tiles, k_blocks):
    """Of this program's share of `tiles`: its first unit, the unit after its last, and how many tiles it touches."""
    units, programs = tiles * k_blocks, tl.num_programs(0)
    first, last = begin(tl.program_id(0), units, programs), begin(tl.program_id(0) + 1, units, programs)
    return first, last, tl.cdiv(last, k_blocks) - first // k_blocks


@triton.jit
def store_part(sums, partial, first, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sums of a part of a tile, which begins with block `first` of K: a program has two places, one for the tile that
    its share ends in, one for that in which it begins."""
    place = (2 * tl.program_id(0) + (first == 0).to(tl.int32)).to(tl.int64) * (BLOCK_M * BLOCK_N)
    inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(partial + place + inside, sums)


@triton.jit
def _join(
    partial, x_scale, w_scale, out, rows, columns, x_scale_stride, w_scale_stride, out_stride, whole, k_blocks,
    SCALED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program ROWS rows of the tile in which the share of program `tl.program_id(0)` begins, if that is the tile's
    second part."""
    m_blocks, n_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    second, programs = tl.program_id(0), tl.num_programs(0)
    units = (m_blocks * n_blocks - whole) * k_blocks
    unit = begin(second, units, programs)
    tile = unit // k_blocks
    if unit % k_blocks != 0 and begin(second - 1, units, programs) <= tile * k_blocks:
        inside = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        part = partial + second.to(tl.int64) * (2 * BLOCK_M * BLOCK_N) + inside
        total = tl.load(part - BLOCK_M * BLOCK_N)
        for _ in range(second, tl.cdiv((tile + 1) * k_blocks * programs, units)):
            total += tl.load(part)
            part += 2 * BLOCK_M * BLOCK_N
        m_block, n_block = tiling.place_of(whole + tile, m_blocks, n_blocks, GROUP_M)
        m = m_block * BLOCK_M + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        n = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
        if SCALED:
            by_row = tl.load(x_scale + m * x_scale_stride, mask=m < rows, other=0.0)
            by_channel = tl.load(w_scale + n * w_scale_stride, mask=n < columns, other=0.0)
            total = tiling.scaled(total, by_row[:, None], by_channel[None, :])
        at = m.to(tl.int64)[:, None] * out_stride + n[None, :]
        tl.store(out + at, to_bf16(total), mask=(m < rows)[:, None] & (n < columns)[None, :])


@dataclass(frozen=True)
class Schedule:
    """Who computes what."""

    programs: int
    whole: int
    """Tiles that one program each computes; the rest are shared."""
    k_blocks: int
    parts: bool
    """Some tile has more parts than one."""


def schedule(variant: Variant, tiles: int, k_blocks: int, at_once: int) -> Schedule:
    """For `at_once` programs that run at the same time."""
    if variant[AXIS] == WHOLE or tiles % at_once == 0:
        return Schedule(min(at_once, tiles), tiles, k_blocks, parts=False)
    whole = max(tiles // at_once - 1, 0) * at_once
    programs = min(at_once, (tiles - whole) * k_blocks)
    return Schedule(programs, whole, k_blocks, parts=(tiles - whole) % programs > 0)


def constants(given: Mapping[str, int]) -> dict[str, int]:
    """Those of a variant's constants that kernels of several tiles have."""
    return {name: given[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")}


@cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def workspace(plan: Schedule, variant: Variant, out: Tensor, dtype: torch.dtype) -> Tensor:
    """Two tiles a program."""
    if not plan.parts:
        return torch.empty(0, dtype=dtype, device=out.device)
    return torch.empty(2 * plan.programs, variant["BLOCK_M"], variant["BLOCK_N"], dtype=dtype, device=out.device)


def join(
    partial: Tensor, out: Tensor, plan: Schedule, variant: Variant, scales: tuple[Tensor, Tensor] | None = None
) -> None:
    """Parts of tiles added into out (rows, columns) bfloat16, times scales by row and by column."""
    if not plan.parts:
        return
    rows, columns = out.shape
    x_scale, w_scale = scales or (out, out)
    _join[(plan.programs, variant["BLOCK_M"] // _ROWS)](
        partial, x_scale, w_scale, out, rows, columns, tiling.scale_stride(x_scale), tiling.scale_stride(w_scale),
        out.stride(0), plan.whole, plan.k_blocks, SCALED=scales is not None, BLOCK_M=variant["BLOCK_M"],
        BLOCK_N=variant["BLOCK_N"], GROUP_M=variant["GROUP_M"], ROWS=_ROWS, **PLAIN,
    )  # fmt: skip


def launches(variant: Variant, total: str = "*fp32", *, scaled: bool = False) -> tuple[Launch, ...]:
    """The second kernel, where the variant has one; `total`: the parts' type."""
    if variant[AXIS] != SHARED:
        return ()
    scale = "*fp32" if scaled else "*bf16"
    signature = {
        "partial": total, "x_scale": scale, "w_scale": scale, "out": "*bf16", "rows": "i32", "columns": "i32",
        "x_scale_stride": "i32", "w_scale_stride": "i32", "out_stride": "i32", "whole": "i32", "k_blocks": "i32",
    }  # fmt: skip
    constants = {"SCALED": scaled, "ROWS": _ROWS, **{name: variant[name] for name in ("BLOCK_M", "BLOCK_N", "GROUP_M")}}
    aligned = ("partial", "x_scale", "w_scale", "out", "columns", "out_stride")
    return (Launch(_join, signature, constants, aligned, PLAIN, "parts of tiles added"),)
