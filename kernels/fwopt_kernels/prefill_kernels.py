"""The kernel of `prefill_attention.py`: a tile of queries by heads over the keys that it sees, or a part of them."""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels.paged_attention import LOG2_E, capped, operand, pages, sink_weight
from fwopt_kernels.rounding import dot, to_bf16


@triton.jit
def _place(starts, sequences, QUERIES: tl.constexpr, KV_HEADS: tl.constexpr, HEADS_FIRST: tl.constexpr):
    """KV head and sequence of this program; its first query within the chunk, beyond it where there is nothing to do.

    Sequence i has the tiles from starts[i] // QUERIES + i on: enough of them, found without knowing any length on the
    host. The last tile begins first: the later in its chunk, the longer it takes, and what begins last should be short.
    """
    tiles = tl.num_programs(0) // KV_HEADS  # in one dimension: a second one ends at 65,535
    if HEADS_FIRST:
        kv_head, tile = tl.program_id(0) % KV_HEADS, tiles - 1 - tl.program_id(0) // KV_HEADS
    else:
        kv_head, tile = tl.program_id(0) // tiles, tiles - 1 - tl.program_id(0) % tiles
    low, high = tile * 0, sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // QUERIES + middle <= tile:
            low = middle
        else:
            high = middle
    return kv_head, low, (tile - low - tl.load(starts + low) // QUERIES) * QUERIES


@triton.jit
def _attend_block(
    q, cache, block, start, end, plane_stride, block_stride, slot_stride, position, scale, top, amount, total,
    HEAD: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, BF16: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys: the largest logit so far, the sum of weights, the weighted values."""
    at, dim = start + tl.arange(0, BLOCK_N), tl.arange(0, HEAD_BLOCK)[None, :]
    rows = (block * block_stride + at % PAGE * slot_stride)[:, None] + dim
    if MASKED or HEAD != HEAD_BLOCK:
        real = (at < end)[:, None] & (dim < HEAD)
        k = tl.load(cache + rows, mask=real, other=0.0)
        v = tl.load(cache + plane_stride + rows, mask=real, other=0.0)
    else:
        k, v = tl.load(cache + rows), tl.load(cache + plane_stride + rows)
    if not BF16:
        k, v = k.to(tl.float16), v.to(tl.float16)
    s = dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
    if SOFT_CAP > 0:
        s = capped(s * scale, SOFT_CAP)
        scale = 1.0
    if MASKED:
        seen = at[None, :] <= position
        if WINDOW > 0:
            seen = seen & (at[None, :] > position - WINDOW)
        s = tl.where(seen, s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1) * scale)
    p, shrink = tl.exp2(s * scale - higher[:, None]), tl.exp2(top - higher)
    total = dot(operand(p, BF16), v, total * shrink[:, None])
    return higher, amount * shrink + tl.sum(p, 1), total


@triton.jit(do_not_specialize=["sequences"])  # else compiled anew while serving, for one and for multiples of 16
def attend(
    query, cache, table, lengths, starts, scales, sinks, out, partial, mass, softmax_scale, sequences,
    query_stride, out_stride, plane_stride, block_stride, slot_stride, head_stride, table_stride,
    HEAD: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr, BF16: tl.constexpr, HEAD_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HEADS_FIRST: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A program a KV head and tile of queries, or one of SPLITS parts of the keys that the tile sees, which leaves what
    `attention_merge.py` joins. HEADS_FIRST: all heads of a tile begin together, else all tiles of a head, whose keys
    and values the L2 cache then holds for all of them. `partial`, `mass`: None, where one part is all; `sinks`: None,
    or those to join here.
    """
    queries: tl.constexpr = BLOCK_M // GROUP
    kv_head, sequence, first = _place(starts, sequences, queries, KV_HEADS, HEADS_FIRST)
    begin = tl.load(starts + sequence)
    chunk = tl.load(starts + sequence + 1) - begin
    if first >= chunk:
        return
    row = tl.arange(0, BLOCK_M)[:, None]
    number, head = first + row // GROUP, kv_head * GROUP + row % GROUP
    dim = tl.arange(0, HEAD_BLOCK)[None, :]
    real = (row < queries * GROUP) & (number < chunk)
    wanted = real & (dim < HEAD)
    token = (begin + number).to(tl.int64)
    q = tl.load(query + token * query_stride + head * HEAD + dim, mask=wanted, other=0.0)
    q = operand(q.to(tl.float32), BF16)
    key_scale, value_scale = (1.0, 1.0) if BF16 else (tl.load(scales), tl.load(scales + 1))
    scale = softmax_scale * key_scale * (1.0 if SOFT_CAP > 0 else LOG2_E)
    table += sequence.to(tl.int64) * table_stride
    cache += kv_head.to(tl.int64) * head_stride

    length = tl.load(lengths + sequence)
    before = length - chunk
    position, end = before + number, tl.minimum(before + first + queries, length)
    plain = (before + first + 1) // BLOCK_N * BLOCK_N  # the first query sees all before this
    top, amount = tl.full([BLOCK_M], -1e30, tl.float32), tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, HEAD_BLOCK], tl.float32)
    origin = length * 0
    if WINDOW > 0:
        origin = tl.maximum(before + first + 1 - WINDOW, 0) // BLOCK_N * BLOCK_N
    until = end
    if SPLITS > 1:
        each = tl.cdiv(tl.cdiv(end - origin, BLOCK_N), SPLITS) * BLOCK_N
        origin += tl.program_id(1) * each  # beyond the end where there are fewer blocks than parts
        until = tl.minimum(origin + each, end)
        plain = tl.minimum(plain, until)
    block = pages(table, origin, end, PAGE, BLOCK_N)
    if WINDOW > 0:
        inside = tl.cdiv(tl.maximum(end - WINDOW, 0), BLOCK_N) * BLOCK_N  # the last query sees all from here on
        for start in range(origin, tl.minimum(inside, until), BLOCK_N):
            here, block = block, pages(table, start + BLOCK_N, end, PAGE, BLOCK_N)
            top, amount, total = _attend_block(
                q, cache, here, start, end, plane_stride, block_stride, slot_stride, position, scale, top, amount,
                total, HEAD, PAGE, WINDOW, SOFT_CAP, BF16, HEAD_BLOCK, BLOCK_M, BLOCK_N, True,
            )  # fmt: skip
        origin = tl.maximum(origin, inside)
    for start in range(origin, plain, BLOCK_N):
        here, block = block, pages(table, start + BLOCK_N, end, PAGE, BLOCK_N)
        top, amount, total = _attend_block(
            q, cache, here, start, end, plane_stride, block_stride, slot_stride, position, scale, top, amount, total,
            HEAD, PAGE, WINDOW, SOFT_CAP, BF16, HEAD_BLOCK, BLOCK_M, BLOCK_N, False,
        )  # fmt: skip
    for start in range(tl.maximum(origin, plain), until, BLOCK_N):
        here, block = block, pages(table, start + BLOCK_N, end, PAGE, BLOCK_N)
        top, amount, total = _attend_block(
            q, cache, here, start, end, plane_stride, block_stride, slot_stride, position, scale, top, amount, total,
            HEAD, PAGE, WINDOW, SOFT_CAP, BF16, HEAD_BLOCK, BLOCK_M, BLOCK_N, True,
        )  # fmt: skip
    if SPLITS > 1:
        heads: tl.constexpr = KV_HEADS * GROUP
        corner = ((begin + first).to(tl.int64) * heads + kv_head * GROUP) * SPLITS + tl.program_id(1)
        within = (row // GROUP * heads + row % GROUP) * SPLITS  # 32 bits: what is long would be kept through the loops
        none = amount == 0  # rows that see no key of this part
        amount = tl.where(none, 1.0, amount)
        tl.store(
            partial + corner * HEAD + (within * HEAD + dim),
            total * (value_scale / amount)[:, None],
            mask=wanted & (none == 0)[:, None],
        )
        of_a_row = tl.where(none, float("-inf"), top + tl.log2(amount))[:, None]
        tl.store(mass + corner + within, of_a_row, mask=real)
    else:
        if sinks is not None:  # not before: beside a large one, float16 holds no weights
            amount += sink_weight(sinks, kv_head * GROUP + tl.arange(0, BLOCK_M) % GROUP, top)
        result = total * (value_scale / tl.where(amount > 0, amount, 1.0))[:, None]
        tl.store(out + token * out_stride + head * HEAD + dim, to_bf16(result), mask=wanted)
