"""Attention of one query token a sequence over a paged KV cache, the context cut into splits.

All query heads of a KV head share one program, so each key and value is read once. What the splits leave behind is
joined by `attention_merge.py`. Where a split begins and ends depends on its sequence's length and the variant alone: a
sequence's result is the same, bit for bit, in every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.attention_case import AttentionCase, expected, fallback, least_work, random_case
from fwopt_kernels.attention_merge import join, merge_launch, room
from fwopt_kernels.contract import FALLBACK, NUM_STAGES, NUM_WARPS, Expected, Launch, Space, Variant, Work, variant
from fwopt_kernels.paged_attention import STRIDES, capped, operand, pages, require_readable, sink_weight, with_sinks
from fwopt_kernels.rope_cache import CACHE_DTYPES
from fwopt_kernels.rounding import dot, to_bf16


@triton.jit
def _span(length, split, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """First position that attention sees; where the split begins and ends. It is empty where it begins at `length`."""
    first = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else length * 0
    origin = first // BLOCK_N * BLOCK_N
    each = tl.cdiv(tl.cdiv(length - origin, BLOCK_N), SPLITS) * BLOCK_N
    begin = tl.minimum(origin + split * each, length)
    return first, begin, tl.minimum(begin + each, length)


@triton.jit
def _numbers(word, HIGH: tl.constexpr):
    """The first or second of each pair of e4m3 numbers: pairs, because only 16-bit words can be transposed on their
    way from shared memory to a matrix product."""
    byte = (word >> 8) if HIGH else (word & 0xFF)
    return byte.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)


@triton.jit
def _attend(
    query, cache, table, lengths, scales, sinks, out, partial, mass, softmax_scale,
    query_stride, out_stride, plane_stride, block_stride, slot_stride, head_stride, table_stride,
    PACK: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr, HEAD_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program a KV head, split and sequence: neighbours read the same pages.

    The cache and its strides count words of PACK numbers: a bfloat16, or two e4m3. Of those, `q` and `total` have the
    first ones, `q_odd` and `odd` the second. `sinks`: None, or those to join here, where one split is all.
    """
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, begin, end = _span(tl.load(lengths + sequence), split, WINDOW, SPLITS, BLOCK_N)
    head, word = kv_head * GROUP + tl.arange(0, GROUP_BLOCK)[:, None], tl.arange(0, HEAD_BLOCK // PACK)[None, :]
    real = tl.arange(0, GROUP_BLOCK)[:, None] < GROUP
    wanted = real & (word < HEAD // PACK)
    query += sequence * query_stride + head * HEAD + word * PACK
    q = operand(tl.load(query, mask=wanted, other=0.0).to(tl.float32), PACK == 1)
    if PACK == 2:
        q_odd = operand(tl.load(query + 1, mask=wanted, other=0.0).to(tl.float32), PACK == 1)
        odd = tl.zeros(q.shape, tl.float32)
    key_scale, value_scale = (tl.load(scales), tl.load(scales + 1)) if PACK == 2 else (1.0, 1.0)
    scale = softmax_scale * key_scale
    table += sequence * table_stride
    cache += kv_head * head_stride
    top = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    sums = tl.zeros([GROUP_BLOCK, BLOCK_N], tl.float32)
    total = tl.zeros(q.shape, tl.float32)
    block = pages(table, begin, end, PAGE, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        seen = (at >= first) & (at < end)
        rows = (block * block_stride + at % PAGE * slot_stride)[:, None] + word
        block = pages(table, start + BLOCK_N, end, PAGE, BLOCK_N)  # loaded where used, it would take half the stages
        k = tl.load(cache + rows, mask=seen[:, None] & (word < HEAD // PACK), other=0)
        v = tl.load(cache + plane_stride + rows, mask=seen[:, None] & (word < HEAD // PACK), other=0)
        if PACK == 1:
            s = dot(q, tl.trans(k), tl.zeros([GROUP_BLOCK, BLOCK_N], tl.float32))
        else:
            s = dot(q, tl.trans(_numbers(k, False)), tl.zeros([GROUP_BLOCK, BLOCK_N], tl.float32))
            s = dot(q_odd, tl.trans(_numbers(k, True)), s)
        s = tl.where(seen[None, :], capped(s * scale, SOFT_CAP), float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p, shrink = tl.exp2(s - higher[:, None]), tl.exp2(top - higher)[:, None]
        top = higher
        sums = sums * shrink + p  # summed over positions once, after the loop
        p = operand(p, PACK == 1)
        if PACK == 1:
            total = dot(p, v, total * shrink)
        else:
            total = dot(p, _numbers(v, False), total * shrink)
            odd = dot(p, _numbers(v, True), odd * shrink)
    amount = tl.sum(sums, 1)
    amount = tl.where(begin < end, amount, 1.0)
    if sinks is not None:
        amount += sink_weight(sinks, kv_head * GROUP + tl.arange(0, GROUP_BLOCK) % GROUP, top)
    inverse = (value_scale / amount)[:, None]
    if SPLITS == 1:
        out += sequence * out_stride + head * HEAD + word * PACK
        tl.store(out, to_bf16(total * inverse), mask=wanted)
        if PACK == 2:
            tl.store(out + 1, to_bf16(odd * inverse), mask=wanted)
    else:
        row = (sequence * tl.num_programs(0) * GROUP + head) * SPLITS + split
        if begin < end:
            tl.store(partial + row * HEAD + word * PACK, total * inverse, mask=wanted)
            if PACK == 2:
                tl.store(partial + row * HEAD + word * PACK + 1, odd * inverse, mask=wanted)
        tl.store(mass + row, (top + tl.log2(amount))[:, None], mask=real)


def decode_attention(
    query: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, scales: Tensor, out: Tensor, *,
    softmax_scale: float, window: int | None = None, soft_cap: float | None = None, sinks: Tensor | None = None,
    variant: Variant | None = None, workspace: Tensor | None = None,
) -> None:  # fmt: skip
    """out = softmax(softmax_scale * query @ keys) @ values, a sequence at a time; zeros for one without context.

    query, out (sequences, heads, head_dim) bfloat16, heads packed. cache (2, blocks, block_size, kv_heads, head_dim)
    bfloat16 or e4m3, each head's numbers packed, all other strides free (e4m3: even, as head_dim). table (sequences,
    most blocks) int32, of which only the entries that `lengths` (sequences,) int32 reaches are read. scales (2,)
    float32: of keys and of values, read for an e4m3 cache only. `window`: positions that a query sees, its own the
    last. `soft_cap`: logits become cap * tanh(logits / cap). `sinks` (heads,) float32 or bfloat16: a logit a head that
    joins every softmax without a value, neither scaled nor capped (gpt-oss). `workspace`: what `workspace_numbers` asks
    for, else allocated. ValueError: heads or rows that are not packed, groups that are not whole, sinks of another
    shape or type, a workspace that is too small, e4m3 numbers that are no whole pairs.
    """
    if variant == FALLBACK:
        case = AttentionCase(query, cache, table, lengths, scales, out, softmax_scale, window, soft_cap, sinks=sinks)
        fallback(case)
        return
    sequences, heads, head_dim = query.shape
    if sequences == 0:
        return
    require_readable(query, out, cache, sinks, table=table, lengths=lengths)
    pack, page, kv_heads = 1 if cache.dtype == torch.bfloat16 else 2, cache.shape[2], cache.shape[3]
    if any(number % pack for number in (head_dim, cache.storage_offset(), *cache.stride()[:-1])):
        raise ValueError(
            f"cache: e4m3 numbers are read in pairs, head_dim and strides must be even; got {head_dim} and "
            f"{cache.stride()}"
        )
    chosen = variant or SPACES["bf16" if pack == 1 else "fp8"].default
    splits = chosen["SPLITS"]
    words = cache if pack == 1 else cache.view(torch.int16)
    partial, mass = room(query, chosen, workspace)
    _attend[(kv_heads, splits, sequences)](
        query, words, table, lengths, scales, sinks if splits == 1 else None, out, partial, mass, softmax_scale,
        query.stride(0), out.stride(0), words.stride(0), words.stride(1), words.stride(2), words.stride(3),
        table.stride(0), PACK=pack, HEAD=head_dim, PAGE=page, GROUP=heads // kv_heads, WINDOW=window or 0,
        SOFT_CAP=soft_cap or 0.0, HEAD_BLOCK=triton.next_power_of_2(head_dim),
        GROUP_BLOCK=_group_block(heads // kv_heads), **dict(chosen.constants), **chosen.options,
    )  # fmt: skip
    if splits > 1:
        join(partial, mass, sinks, out, chosen, rows=1)


def _group_block(group: int) -> int:
    """Query heads of a KV head, at least the 16 rows that a matrix product has."""
    return max(16, int(triton.next_power_of_2(group)))


def _space(format: str) -> Space:
    """A warp has 16 to 32 positions of a step: two products of eight or more, and no more than registers hold. A
    program of heads of 128 keeps 32 to 128 KiB on their way: less hides no latency, more leaves room for no other."""

    def allowed(v: Variant) -> bool:
        step_kib = v["BLOCK_N"] * 2 * 128 * CACHE_DTYPES[format].itemsize // 1024
        return 16 <= v["BLOCK_N"] // v.num_warps <= 32 and 32 <= step_kib * (v.num_stages - 1) <= 128

    return Space(
        {"BLOCK_N": (32, 64, 128), "SPLITS": (1, 2, 4, 8, 16, 32), NUM_WARPS: (1, 2, 4, 8), NUM_STAGES: (2, 3, 4, 5)},
        default=variant(4, 3 if format == "bf16" else 4, BLOCK_N=64, SPLITS=8),
        allowed=allowed,
    )


SPACES = {format: _space(format) for format in CACHE_DTYPES}


@dataclass(frozen=True)
class DecodeAttention:
    """The operator `decode_attention`. Contexts are spaced evenly from `shortest` to `context` tokens."""

    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    name = "decode_attention"
    formats = ("bf16", "fp8")
    dimensions = ("sequences", "heads", "kv_heads", "head_dim", "block_size", "shortest", "context")

    def space(self, format: str) -> Space:
        return SPACES[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        """For heads of 128, four to a KV head, and pages of 16. Defaults also with sinks, which no variant differs
        in otherwise."""
        pointers = {
            "query": "*bf16", "cache": "*bf16" if format == "bf16" else "*i16", "table": "*i32", "lengths": "*i32",
            "scales": "*fp32", "out": "*bf16", "partial": "*fp32", "mass": "*fp32",
        }  # fmt: skip
        attend = Launch(
            _attend,
            {**pointers, "softmax_scale": "fp32", **STRIDES, "table_stride": "i32"},
            {"sinks": None, "HEAD": 128, "WINDOW": self.window or 0, "HEAD_BLOCK": 128,
             "PACK": 1 if format == "bf16" else 2, "PAGE": 16, "GROUP": 4, "SOFT_CAP": self.soft_cap or 0.0,
             "GROUP_BLOCK": 16, **dict(variant.constants)},
            (*pointers, *STRIDES),
            variant.options,
            "splits",
        )  # fmt: skip
        kernels = (attend,) if variant["SPLITS"] == 1 else (attend, merge_launch(variant, rows=1))
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
        decode_attention(
            case.query, case.cache, case.table, case.lengths, case.scales, case.out,
            softmax_scale=case.softmax_scale, window=case.window, soft_cap=case.soft_cap, sinks=case.sinks,
            variant=variant,
        )  # fmt: skip

    def fallback(self, case: AttentionCase) -> None:
        fallback(case)


DECODE_ATTENTION = DecodeAttention()
WITH_SINKS = DecodeAttention(window=128, sinks=True)
"""As every second layer of gpt-oss has it."""
