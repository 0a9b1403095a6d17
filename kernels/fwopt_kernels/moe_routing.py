"""Which rows a block of the grouped product computes: (token, choice) pairs sorted by expert, padded to whole blocks.

As vLLM's `moe_align_block_size`: pair `token * top_k + choice` goes to the rows of its expert; each expert's rows are
filled up to a multiple of `block_m` with the number of pairs, which is no pair; an expert id outside 0..experts - 1
has no rows. Within an expert pairs keep their order, so results do not depend on chance. Nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.contract import PLAIN, Launch

_CHUNK = 1024


@dataclass(frozen=True)
class Routing:
    """Buffers as long as any routing of so many pairs needs; what lies behind `padded` rows means nothing."""

    pairs: Tensor
    """(rows,) int32: pair of each row, the number of pairs where there is none."""
    experts: Tensor
    """(blocks,) int32: expert of each block of rows."""
    padded: Tensor
    """(1,) int32: rows in use."""


def most_rows(pairs: int, experts: int, block_m: int) -> int:
    """Each expert that gets a pair wastes fewer than `block_m` rows."""
    rows = pairs + min(pairs, experts) * (block_m - 1)
    return -(-rows // block_m) * block_m


def empty(ids: Tensor, experts: int, block_m: int) -> Routing:
    rows = most_rows(ids.numel(), experts, block_m)
    pairs, blocks, padded = (
        torch.empty(n, dtype=torch.int32, device=ids.device) for n in (rows, rows // block_m, 1)
    )  # fmt: skip
    return Routing(pairs, blocks, padded)


@triton.jit
def _align(ids, pairs, experts, padded, count, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    """A program an expert. Each counts all pairs, then writes its own: more reading, but one launch and no atomics."""
    expert, each = tl.program_id(0), tl.arange(0, EXPERTS)
    counts = tl.zeros([EXPERTS], tl.int32)
    for start in range(0, count, CHUNK):
        at = start + tl.arange(0, CHUNK)
        chosen = tl.load(ids + at, mask=at < count, other=-1)
        real = (chosen >= 0) & (chosen < tl.num_programs(0))
        counts += tl.histogram(tl.where(real, chosen, EXPERTS - 1), EXPERTS, mask=real)
    blocks = tl.cdiv(counts, BLOCK_M)
    first = tl.sum(tl.where(each < expert, blocks, 0), 0)
    last = first + tl.sum(tl.where(each == expert, blocks, 0), 0)
    if expert == 0:
        tl.store(padded, tl.sum(blocks, 0) * BLOCK_M)
    for block in range(first, last):
        tl.store(experts + block, expert)
    row = first * BLOCK_M
    for start in range(0, count, CHUNK):
        at = start + tl.arange(0, CHUNK)
        mine = tl.load(ids + at, mask=at < count, other=-1) == expert
        rank = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(pairs + row + rank - 1, at, mask=mine)
        row += tl.sum(mine.to(tl.int32), 0)
    rest = row + tl.arange(0, BLOCK_M)
    tl.store(pairs + rest, tl.zeros([BLOCK_M], tl.int32) + count, mask=rest < last * BLOCK_M)


def align(ids: Tensor, experts: int, block_m: int) -> Routing:
    """ids (tokens, top_k) int32, contiguous."""
    routing = empty(ids, experts, block_m)
    _align[(experts,)](
        ids, routing.pairs, routing.experts, routing.padded, ids.numel(),
        BLOCK_M=block_m, EXPERTS=triton.next_power_of_2(experts), CHUNK=_CHUNK, **PLAIN,
    )  # fmt: skip
    return routing


def align_launch(experts: int, block_m: int) -> Launch:
    pointers = ("ids", "pairs", "experts", "padded")
    signature = {**dict.fromkeys(pointers, "*i32"), "count": "i32"}
    constants = {"BLOCK_M": block_m, "EXPERTS": triton.next_power_of_2(experts), "CHUNK": _CHUNK}
    return Launch(_align, signature, constants, pointers, PLAIN, "align")


def align_torch(ids: Tensor, experts: int, block_m: int) -> Routing:
    """The same without Triton."""
    routing = empty(ids, experts, block_m)
    flat, count = ids.flatten().long(), ids.numel()
    flat = torch.where((flat >= 0) & (flat < experts), flat, experts)  # a last expert for those that have none
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.long, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))
    sizes = (counts[:-1] + block_m - 1) // block_m * block_m
    ends = sizes.cumsum(0)
    begins = torch.cat([ends - sizes, ends.new_full((1,), len(routing.pairs))])
    chosen = flat[order]
    rank = torch.arange(count, device=ids.device) - (counts.cumsum(0) - counts)[chosen]
    target = torch.where(chosen < experts, begins[chosen] + rank, len(routing.pairs))
    rows = torch.full((len(routing.pairs) + 1,), count, dtype=torch.int32, device=ids.device)
    routing.pairs.copy_(rows.scatter_(0, target, order.int())[:-1])
    starts = torch.arange(len(routing.experts), device=ids.device) * block_m
    routing.experts.copy_(torch.searchsorted(ends, starts, right=True))
    routing.padded.copy_(ends[-1:])
    return routing
