"""Causal attention of prompt chunks over a paged KV cache that holds them already.

A tile's rows are queries by heads: all query heads of a KV head share one program, so each key and value is read once
for the group. Blocks of keys that every query of the tile sees are taken without masks, those at its ends with masks,
those wholly after it or before its window not at all. Which blocks a query meets, and in which order, depends on its
own chunk, context and the variant alone: a chunk's result is the same, bit for bit, in every batch.

An e4m3 cache is converted to float16 on its way to shared memory, from which Hopper's products take their second
operand; a 16-bit one can be transposed there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.attention_case import AttentionCase, expected, fallback, least_work, random_case
from fwopt_kernels.contract import (
    FALLBACK,
    NUM_STAGES,
    NUM_WARPS,
    Expected,
    Large,
    Launch,
    Space,
    Variant,
    Work,
    variant,
)
from fwopt_kernels.paged_attention import (
    LOG2_E,
    STRIDES,
    capped,
    operand,
    pages,
    require_readable,
    sink_weight,
    with_sinks,
)
from fwopt_kernels.rope_cache import CACHE_DTYPES, CACHE_TYPES
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
def _attend(
    query, cache, table, lengths, starts, scales, sinks, out, softmax_scale, sequences,
    query_stride, out_stride, plane_stride, block_stride, slot_stride, head_stride, table_stride,
    HEAD: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr, BF16: tl.constexpr, HEAD_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HEADS_FIRST: tl.constexpr,
):  # fmt: skip
    """A program a KV head and tile of queries. HEADS_FIRST: all heads of a tile begin together, else all tiles of a
    head, whose keys and values the L2 cache then holds for all of them."""
    queries: tl.constexpr = BLOCK_M // GROUP
    kv_head, sequence, first = _place(starts, sequences, queries, KV_HEADS, HEADS_FIRST)
    begin = tl.load(starts + sequence)
    chunk = tl.load(starts + sequence + 1) - begin
    if first >= chunk:
        return
    row = tl.arange(0, BLOCK_M)[:, None]
    number, head = first + row // GROUP, kv_head * GROUP + row % GROUP
    dim = tl.arange(0, HEAD_BLOCK)[None, :]
    wanted = (row < queries * GROUP) & (number < chunk) & (dim < HEAD)
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
    block = pages(table, origin, end, PAGE, BLOCK_N)
    if WINDOW > 0:
        inside = tl.cdiv(tl.maximum(end - WINDOW, 0), BLOCK_N) * BLOCK_N  # the last query sees all from here on
        for start in range(origin, tl.minimum(inside, end), BLOCK_N):
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
    for start in range(tl.maximum(origin, plain), end, BLOCK_N):
        here, block = block, pages(table, start + BLOCK_N, end, PAGE, BLOCK_N)
        top, amount, total = _attend_block(
            q, cache, here, start, end, plane_stride, block_stride, slot_stride, position, scale, top, amount, total,
            HEAD, PAGE, WINDOW, SOFT_CAP, BF16, HEAD_BLOCK, BLOCK_M, BLOCK_N, True,
        )  # fmt: skip
    if sinks is not None:  # not before: beside a large one, float16 holds no weights
        amount += sink_weight(sinks, kv_head * GROUP + tl.arange(0, BLOCK_M) % GROUP, top)
    result = total * (value_scale / tl.where(amount > 0, amount, 1.0))[:, None]
    tl.store(out + token * out_stride + head * HEAD + dim, to_bf16(result), mask=wanted)


def prefill_attention(
    query: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, starts: Tensor, scales: Tensor, out: Tensor, *,
    softmax_scale: float, window: int | None = None, soft_cap: float | None = None, sinks: Tensor | None = None,
    variant: Variant | None = None,
) -> None:  # fmt: skip
    """out = softmax(softmax_scale * query @ keys) @ values: of each token over its sequence's tokens up to itself.

    query, out (tokens, heads, head_dim) bfloat16, heads packed: the chunks one after the other, sequence i's from
    `starts[i]` to `starts[i + 1]`; `starts` (sequences + 1,) int32 begins with 0 and ends with the number of tokens. A
    chunk may be empty. Its tokens are the last of the `lengths[i]` that the cache holds of the sequence. cache (2,
    blocks, block_size, kv_heads, head_dim) bfloat16 or e4m3, each head's numbers packed, all other strides free. table
    (sequences, most blocks) int32, of which only the entries that `lengths` (sequences,) int32 reaches are read. scales
    (2,) float32: of keys and of values, read for an e4m3 cache only. `softmax_scale` is above zero. `window`: positions
    that a query sees, its own the last. `soft_cap`: logits become cap * tanh(logits / cap). `sinks`: as those of
    `decode_attention`. ValueError: what does not fit, or is not packed.
    """
    tokens, heads, head_dim = query.shape
    sequences = len(lengths)
    if starts.shape != (sequences + 1,):
        raise ValueError(f"starts must have an entry a sequence and one more, {sequences + 1}; got {len(starts)}")
    if tokens and not sequences:
        raise ValueError(f"{tokens} tokens belong to no sequence: lengths is empty")
    if softmax_scale <= 0:
        raise ValueError(f"softmax_scale must be above zero, got {softmax_scale}")
    if variant == FALLBACK:
        case = AttentionCase(query, cache, table, lengths, scales, out, softmax_scale, window, soft_cap, starts, sinks)
        fallback(case)
        return
    if tokens == 0:
        return
    require_readable(query, out, cache, sinks, table=table, lengths=lengths, starts=starts)
    page, kv_heads = cache.shape[2], cache.shape[3]
    bf16, group = cache.dtype == torch.bfloat16, heads // kv_heads
    space, each = SPACES["bf16" if bf16 else "fp8"], tokens // sequences
    chosen = variant or space.default_for({"tokens": each, "heads": heads, "kv_heads": kv_heads})
    block_m = max(chosen["BLOCK_M"], int(triton.next_power_of_2(group)))
    tiles = tokens // (block_m // group) + sequences
    _attend[(kv_heads * tiles,)](
        query, cache, table, lengths, starts, scales, sinks, out, softmax_scale, sequences, query.stride(0),
        out.stride(0), cache.stride(0), cache.stride(1), cache.stride(2), cache.stride(3), table.stride(0),
        HEAD=head_dim, PAGE=page, KV_HEADS=kv_heads, GROUP=group, WINDOW=window or 0, SOFT_CAP=soft_cap or 0.0,
        BF16=bf16, HEAD_BLOCK=max(16, triton.next_power_of_2(head_dim)),
        **dict(chosen.constants) | {"BLOCK_M": block_m}, **chosen.options,
    )  # fmt: skip


def _space(format: str) -> Space:
    """A warp has the 16 rows that a matrix instruction gives it: with 32 it holds 128 sums a thread beside its logits,
    and spills; more warps than rows would divide the keys, and meet in shared memory at every block."""

    def allowed(v: Variant) -> bool:
        rows, keys = v["BLOCK_M"], v["BLOCK_N"]
        step = keys * 2 * 128 * CACHE_DTYPES[format].itemsize  # bytes of heads of 128
        return (
            v.num_warps == rows // 16
            and keys <= rows  # 64 x 128 spills
            and (step < 2**16 or v.num_stages == 3)  # 128 keys of 16 bits: two stages spill
            and step * v.num_stages <= 192 * 1024  # beside 32 KiB of queries
        )

    def rows(shape: Mapping[str, int]) -> int:
        return shape["tokens"] * shape["heads"] // shape["kv_heads"]

    few = variant(4, 3, BLOCK_M=64, BLOCK_N=64, HEADS_FIRST=1)
    return Space(
        {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128), "HEADS_FIRST": (0, 1), NUM_WARPS: (4, 8),
         NUM_STAGES: (2, 3, 4)},
        default=few,
        allowed=allowed,
        large=Large(rows, 128, variant(8, 3, BLOCK_M=128, BLOCK_N=64, HEADS_FIRST=1)),
    )  # fmt: skip


SPACES = {format: _space(format) for format in CACHE_DTYPES}


@dataclass(frozen=True)
class PrefillAttention:
    """The operator `prefill_attention`. Contexts are spaced evenly from `shortest` to `context` tokens; the last
    `tokens` of each are its chunk, a shorter one is a chunk as a whole."""

    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    name = "prefill_attention"
    formats = ("bf16", "fp8")
    dimensions = ("sequences", "heads", "kv_heads", "head_dim", "block_size", "tokens", "shortest", "context")

    def space(self, format: str) -> Space:
        return SPACES[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        """For heads of 128, four to each of eight KV heads, and pages of 16. Defaults also with sinks."""
        pointers = {
            "query": "*bf16", "cache": CACHE_TYPES[format], "table": "*i32", "lengths": "*i32", "starts": "*i32",
            "scales": "*fp32", "out": "*bf16",
        }  # fmt: skip
        signature = {**pointers, "softmax_scale": "fp32", "sequences": "i32", **STRIDES, "table_stride": "i32"}
        constants = {"sinks": None, "HEAD": 128, "PAGE": 16, "KV_HEADS": 8, "GROUP": 4, "WINDOW": self.window or 0,
                     "SOFT_CAP": self.soft_cap or 0.0, "BF16": format == "bf16", "HEAD_BLOCK": 128,
                     **dict(variant.constants)}  # fmt: skip
        kernels = (Launch(_attend, signature, constants, (*pointers, *STRIDES), variant.options),)
        return with_sinks(kernels, only=self.sinks, also=variant in SPACES[format].defaults)

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        return least_work(format, shape, self.window)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> AttentionCase:
        return random_case(
            format, shape, seed, padding, device, window=self.window, soft_cap=self.soft_cap, sinks=self.sinks
        )

    def reference(self, case: AttentionCase) -> dict[str, Expected]:
        return expected(case)

    def run(self, case: AttentionCase, variant: Variant) -> None:
        assert case.starts is not None
        prefill_attention(
            case.query, case.cache, case.table, case.lengths, case.starts, case.scales, case.out,
            softmax_scale=case.softmax_scale, window=case.window, soft_cap=case.soft_cap, sinks=case.sinks,
            variant=variant,
        )  # fmt: skip

    def fallback(self, case: AttentionCase) -> None:
        fallback(case)


PREFILL_ATTENTION = PrefillAttention()
WITH_SINKS = PrefillAttention(window=128, sinks=True)
"""As every second layer of gpt-oss has it."""
