"""Causal attention of prompt chunks over a paged KV cache that holds them already.

A tile's rows are queries by heads: all query heads of a KV head share one program, so each key and value is read once
for the group. Blocks of keys that every query of the tile sees are taken without masks, those at its ends with masks,
those wholly after it or before its window not at all. Where tiles are few and contexts long, what a tile sees is cut
into parts, each a program's, joined by `attention_merge.py`. Which blocks a query meets, in which order and part,
depends on its own chunk, context and the variant alone: a chunk's result is the same, bit for bit, in every batch.

An e4m3 cache is converted to float16 on its way to shared memory, from which Hopper's products take their second
operand; a 16-bit one can be transposed there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from fwopt_kernels.attention_case import AttentionCase, expected, fallback, least_work, random_case
from fwopt_kernels.attention_merge import join, merge_launch, room
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
from fwopt_kernels.paged_attention import STRIDES, require_readable, with_sinks
from fwopt_kernels.prefill_kernels import attend
from fwopt_kernels.rope_cache import CACHE_DTYPES, CACHE_TYPES

MERGED = 64
"""Parts that one program joins, of few heads of queries or of many: with more of 128 numbers each it spills."""
MOST_PROGRAMS = 1024
"""Beyond it there are none to add on a GPU of 132 multiprocessors with two programs each. Of heads of 128, so many
leave 34 MB behind."""


def prefill_attention(
    query: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, starts: Tensor, scales: Tensor, out: Tensor, *,
    softmax_scale: float, window: int | None = None, soft_cap: float | None = None, sinks: Tensor | None = None,
    variant: Variant | None = None, workspace: Tensor | None = None,
) -> None:  # fmt: skip
    """out = softmax(softmax_scale * query @ keys) @ values: of each token over its sequence's tokens up to itself.

    query, out (tokens, heads, head_dim) bfloat16, heads packed: the chunks one after the other, sequence i's from
    `starts[i]` to `starts[i + 1]`; `starts` (sequences + 1,) int32 begins with 0 and ends with the number of tokens. A
    chunk may be empty. Its tokens are the last of the `lengths[i]` that the cache holds of the sequence. cache (2,
    blocks, block_size, kv_heads, head_dim) bfloat16 or e4m3, each head's numbers packed, all other strides free. table
    (sequences, most blocks) int32, of which only the entries that `lengths` (sequences,) int32 reaches are read. scales
    (2,) float32: of keys and of values, read for an e4m3 cache only. `softmax_scale` is above zero. `window`: positions
    that a query sees, its own the last. `soft_cap`: logits become cap * tanh(logits / cap). `sinks`: as those of
    `decode_attention`. `workspace`: what `workspace_numbers` of `attention_merge.py` asks for, else allocated.
    ValueError: what does not fit, or is not packed.
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
    longest = table.shape[1] * page
    context = min(longest, each + window) if window else longest
    sizes = {"sequences": sequences, "tokens": each, "heads": heads, "kv_heads": kv_heads, "context": context}
    chosen = variant or space.default_for(sizes)
    splits, block_m = chosen["SPLITS"], max(chosen["BLOCK_M"], int(triton.next_power_of_2(group)))
    partial, mass = (None, None) if splits == 1 else room(query, chosen, workspace)
    tiles = tokens // (block_m // group) + sequences
    attend[(kv_heads * tiles, splits)](
        query, cache, table, lengths, starts, scales, sinks if splits == 1 else None, out, partial, mass, softmax_scale,
        sequences, query.stride(0), out.stride(0), cache.stride(0), cache.stride(1), cache.stride(2), cache.stride(3),
        table.stride(0), HEAD=head_dim, PAGE=page, KV_HEADS=kv_heads, GROUP=group, WINDOW=window or 0,
        SOFT_CAP=soft_cap or 0.0, BF16=bf16, HEAD_BLOCK=max(16, triton.next_power_of_2(head_dim)),
        **dict(chosen.constants) | {"BLOCK_M": block_m}, **chosen.options,
    )  # fmt: skip
    if partial is not None and mass is not None:
        join(partial, mass, sinks, out, chosen, rows=MERGED // splits)


def _programs(shape: Mapping[str, int]) -> int:
    """Of tiles of 64 rows, where nothing is split."""
    rows = shape["tokens"] * shape["heads"] // shape["kv_heads"]
    return shape["sequences"] * shape["kv_heads"] * -(-rows // 64)


def _suits(v: Variant, shape: Mapping[str, int]) -> bool:
    splits = dict(v.constants).get("SPLITS", 1)
    return splits == 1 or _programs(shape) * splits <= MOST_PROGRAMS


def _space(format: str) -> Space:
    """A warp has the 16 rows that a matrix instruction gives it: with 32 it holds 128 sums a thread beside its logits,
    and spills; more warps than rows would divide the keys, and meet in shared memory at every block. Short chunks are
    split: their tiles are small, they wait for memory, and there are too few of them for their order to matter."""

    def allowed(v: Variant) -> bool:
        rows, keys = v["BLOCK_M"], v["BLOCK_N"]
        step = keys * 2 * 128 * CACHE_DTYPES[format].itemsize  # bytes of heads of 128
        return (
            v.num_warps == rows // 16
            and keys <= rows  # 64 x 128 spills
            and (step < 2**16 or v.num_stages == 3)  # 128 keys of 16 bits: two stages spill
            and step * v.num_stages <= 192 * 1024  # beside 32 KiB of queries
            and (v["SPLITS"] == 1 or (rows == keys == 64 and v["HEADS_FIRST"] == 1 and v.num_stages > 2))
        )

    def rows(shape: Mapping[str, int]) -> int:
        return shape["tokens"] * shape["heads"] // shape["kv_heads"]

    def context(shape: Mapping[str, int]) -> int:
        return shape["context"] if _programs(shape) <= 64 else 0

    few = {"BLOCK_M": 64, "BLOCK_N": 64, "HEADS_FIRST": 1}
    return Space(
        {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128), "HEADS_FIRST": (0, 1), "SPLITS": (1, 4, 8, 16, 32),
         NUM_WARPS: (4, 8), NUM_STAGES: (2, 3, 4)},
        default=variant(4, 3, **few, SPLITS=1),
        allowed=allowed,
        large=Large(rows, 128, variant(8, 3, BLOCK_M=128, BLOCK_N=64, HEADS_FIRST=1, SPLITS=1)),
        long=Large(context, 4096, variant(4, 3, **few, SPLITS=8)),
        suits=_suits,
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
            "scales": "*fp32", "out": "*bf16", "partial": "*fp32", "mass": "*fp32",
        }  # fmt: skip
        parts = {} if variant["SPLITS"] > 1 else {"partial": None, "mass": None}
        pointers = {name: type for name, type in pointers.items() if name not in parts}
        signature = {**pointers, "softmax_scale": "fp32", "sequences": "i32", **STRIDES, "table_stride": "i32"}
        constants = {"sinks": None, **parts, "HEAD": 128, "PAGE": 16, "KV_HEADS": 8, "GROUP": 4,
                     "WINDOW": self.window or 0, "SOFT_CAP": self.soft_cap or 0.0, "BF16": format == "bf16",
                     "HEAD_BLOCK": 128, **dict(variant.constants)}  # fmt: skip
        kernels: tuple[Launch, ...] = (Launch(attend, signature, constants, (*pointers, *STRIDES), variant.options),)
        if variant["SPLITS"] > 1:
            kernels = (*kernels, merge_launch(variant, rows=MERGED // variant["SPLITS"]))
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
