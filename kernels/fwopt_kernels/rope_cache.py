"""Rotary embedding of queries and keys, and keys and values written to the paged KV cache, in one kernel.

As vLLM's `rotary_embedding` (neox style: the two halves of the rotated part form pairs) followed by
`reshape_and_cache_flash`: queries and keys are rotated in place; keys and values go to the slot of their token,
`slot // block_size` being the block; a slot of -1 writes nothing. An fp8 cache holds `value / scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.contract import FALLBACK, NUM_WARPS, Expected, Launch, Space, Variant, Work, variant
from fwopt_kernels.rounding import through_bf16, to_bf16, to_fp8

CACHE_TYPES = {"bf16": "*bf16", "fp8": "*fp8e4nv"}
CACHE_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@triton.jit
def _cached(values, inverse_scale, FORMAT: tl.constexpr):
    if FORMAT == "bf16":
        return to_bf16(values)
    else:
        return to_fp8(values * inverse_scale)


@triton.jit
def _rotate(x, head, heads, table, HEAD: tl.constexpr, ROTARY: tl.constexpr, HALF_BLOCK: tl.constexpr):
    """Pairs (low, high) of one token's heads turned by their angles, in place; the same as float32."""
    half = tl.arange(0, HALF_BLOCK)[None, :]
    inside = half < ROTARY // 2
    cos = tl.load(table + half, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(table + ROTARY // 2 + half, mask=inside, other=0.0).to(tl.float32)
    mask = (head < heads) & inside
    at = x + head * HEAD + half
    low = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(at + ROTARY // 2, mask=mask, other=0.0).to(tl.float32)
    turned_low = through_bf16(low * cos - high * sin)
    turned_high = through_bf16(high * cos + low * sin)
    tl.store(at, to_bf16(turned_low), mask=mask)
    tl.store(at + ROTARY // 2, to_bf16(turned_high), mask=mask)
    return turned_low, turned_high


@triton.jit
def _rope_cache(
    query, key, value, cache, slots, positions, table, scales, query_heads, kv_heads,
    query_stride, key_stride, value_stride, plane_stride, block_stride, slot_stride, table_stride,
    FORMAT: tl.constexpr, HEAD: tl.constexpr, ROTARY: tl.constexpr, PAGE: tl.constexpr,
    HALF_BLOCK: tl.constexpr, HEAD_BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A program a token and a group of HEADS heads: first the groups of the queries, then those of keys and values."""
    token = tl.program_id(0).to(tl.int64)
    table += tl.load(positions + token) * table_stride
    query_groups = tl.cdiv(query_heads, HEADS)
    group = tl.program_id(1)
    if group < query_groups:
        head = group * HEADS + tl.arange(0, HEADS)[:, None]
        _rotate(query + token * query_stride, head, query_heads, table, HEAD, ROTARY, HALF_BLOCK)
    else:
        head = (group - query_groups) * HEADS + tl.arange(0, HEADS)[:, None]
        low, high = _rotate(key + token * key_stride, head, kv_heads, table, HEAD, ROTARY, HALF_BLOCK)
        slot = tl.load(slots + token)
        if slot >= 0:
            key_inverse, value_inverse = 1.0 / tl.load(scales), 1.0 / tl.load(scales + 1)
            cache += (slot // PAGE) * block_stride + (slot % PAGE) * slot_stride
            half = tl.arange(0, HALF_BLOCK)[None, :]
            rotated = (head < kv_heads) & (half < ROTARY // 2)
            to = cache + head * HEAD + half
            tl.store(to, _cached(low, key_inverse, FORMAT), mask=rotated)
            tl.store(to + ROTARY // 2, _cached(high, key_inverse, FORMAT), mask=rotated)
            at = head * HEAD + tl.arange(0, HEAD_BLOCK)[None, :]
            inside = (head < kv_heads) & (tl.arange(0, HEAD_BLOCK)[None, :] < HEAD)
            if ROTARY < HEAD:
                rest = inside & (tl.arange(0, HEAD_BLOCK)[None, :] >= ROTARY)
                kept = tl.load(key + token * key_stride + at, mask=rest, other=0.0).to(tl.float32)
                tl.store(cache + at, _cached(kept, key_inverse, FORMAT), mask=rest)
            moved = tl.load(value + token * value_stride + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(cache + plane_stride + at, _cached(moved, value_inverse, FORMAT), mask=inside)


def rope_cache(
    query: Tensor, key: Tensor, value: Tensor, cache: Tensor, slots: Tensor, positions: Tensor, table: Tensor,
    scales: Tensor, *, variant: Variant | None = None,
) -> None:  # fmt: skip
    """Rotate query and key in place; write key and value to their slots.

    query (tokens, heads, head_dim), key and value (tokens, kv_heads, head_dim): bfloat16, heads packed within a
    token. cache (2, blocks, block_size, kv_heads, head_dim), heads packed within a slot, bfloat16 or e4m3.
    slots, positions (tokens,) int64. table (positions, rotary_dim): cosines, then sines. scales (2,) float32: of
    keys and of values, read for an e4m3 cache only.
    """
    if variant == FALLBACK:
        ROPE_CACHE.fallback(RopeCase(query, key, value, cache, slots, positions, table, scales))
        return
    tokens, query_heads, head_dim = query.shape
    if tokens == 0:
        return
    for name, tensor in (("query", query), ("key", key), ("value", value), ("cache", cache)):
        if tensor.stride()[-2:] != (head_dim, 1):
            raise ValueError(f"{name}: heads must be packed, strides {(head_dim, 1)}, got {tensor.stride()[-2:]}")
    chosen, kv_heads, rotary = variant or SPACE.default, key.shape[1], table.shape[1]
    heads = chosen["HEADS"]
    grid = (tokens, triton.cdiv(query_heads, heads) + triton.cdiv(kv_heads, heads))
    _rope_cache[grid](
        query, key, value, cache, slots, positions, table, scales, query_heads, kv_heads,
        query.stride(0), key.stride(0), value.stride(0), cache.stride(0), cache.stride(1), cache.stride(2),
        table.stride(0), FORMAT="bf16" if cache.dtype == torch.bfloat16 else "fp8",
        HEAD=head_dim, ROTARY=rotary, PAGE=cache.shape[2], HALF_BLOCK=triton.next_power_of_2(rotary // 2),
        HEAD_BLOCK=triton.next_power_of_2(head_dim), HEADS=heads,
        **chosen.options,
    )  # fmt: skip


SPACE = Space(
    {"HEADS": (1, 2, 4, 8, 16, 32), NUM_WARPS: (1, 2, 4, 8)},
    default=variant(2, 1, HEADS=8),
    allowed=lambda v: 2 <= v["HEADS"] * 64 // (32 * v.num_warps) <= 32,  # values a thread of half a head's 128
)


@dataclass(frozen=True)
class RopeCase:
    query: Tensor
    key: Tensor
    value: Tensor
    cache: Tensor
    slots: Tensor
    positions: Tensor
    table: Tensor
    scales: Tensor

    def results(self) -> dict[str, Tensor]:
        cache = self.cache.float().double()
        if self.cache.dtype != torch.bfloat16:
            cache = cache * self.scales.double().view(2, 1, 1, 1, 1)
        results: dict[str, Tensor] = {"query": self.query.double(), "key": self.key.double(), "cache": cache}
        return results


def _turn(x: Tensor, case: RopeCase) -> tuple[Tensor, Tensor]:
    """x rotated, in x's precision, and the magnitude that its rounding errors scale with."""
    half = case.table.shape[1] // 2
    cos, sin = (part.unsqueeze(1).to(x.dtype) for part in case.table[case.positions].split(half, -1))
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = torch.cat([low * cos - high * sin, high * cos + low * sin, rest], -1)
    a, b = (low * cos).abs() + (high * sin).abs(), (high * cos).abs() + (low * sin).abs()
    return turned, torch.cat([a, b, torch.zeros_like(rest)], -1)


class RopeCache:
    """The operator `rope_cache`; an even rotary_dim up to head_dim."""

    name = "rope_cache"
    formats: tuple[str, ...] = ("bf16", "fp8")
    dimensions = ("tokens", "heads", "kv_heads", "head_dim", "rotary_dim", "block_size")

    def space(self, format: str) -> Space:
        return SPACE

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        pointers = {
            "query": "*bf16", "key": "*bf16", "value": "*bf16", "cache": CACHE_TYPES[format], "slots": "*i64",
            "positions": "*i64", "table": "*bf16", "scales": "*fp32", "query_heads": "i32", "kv_heads": "i32",
        }  # fmt: skip
        names = ("query", "key", "value", "plane", "block", "slot", "table")
        strides = {f"{name}_stride": "i64" if name == "plane" else "i32" for name in names}
        constants = {
            "FORMAT": format, "HEAD": 128, "ROTARY": 128, "PAGE": 16, "HALF_BLOCK": 64, "HEAD_BLOCK": 128,
            "HEADS": variant["HEADS"],
        }  # fmt: skip
        aligned = tuple(n for n in (*pointers, *strides) if n not in ("query_heads", "kv_heads"))
        signature = {**pointers, **strides}
        return (Launch(_rope_cache, signature, constants, aligned, variant.options),)

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        """Queries and keys are read and written in place, their rotated part alone; the cache is only written."""
        tokens, heads, kv_heads, dim, rotary, _ = (shape[name] for name in self.dimensions)
        rotated = 2 * 2 * (heads + kv_heads) * rotary
        cached = kv_heads * dim * (2 if format == "bf16" else 1) * 2
        passed = 2 * kv_heads * (2 * dim - rotary)
        return Work(tokens * (rotated + passed + cached + 2 * rotary + 16), 0)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> RopeCase:
        """A quarter of the slots are -1, the first one always; the cache holds other values before."""
        tokens, heads, kv_heads, dim, rotary, page = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            values: Tensor = torch.randn(*size, generator=random).to(torch.bfloat16).to(device)
            return values

        def packed(count: int) -> Tensor:
            flat = normal(tokens, count * dim + padding)[:, : count * dim]
            return flat.as_strided((tokens, count, dim), (flat.stride(0), dim, 1))

        blocks = tokens // page + 2
        slots = torch.randperm(blocks * page, generator=random)[:tokens]
        slots[torch.rand(tokens, generator=random) < 0.25] = -1
        slots[:1] = -1
        angles = torch.arange(512)[:, None] * 10_000.0 ** (-torch.arange(0, rotary, 2) / rotary)
        table = torch.cat([angles.cos(), angles.sin()], -1).to(torch.bfloat16).to(device)
        return RopeCase(
            packed(heads), packed(kv_heads), packed(kv_heads),
            normal(2, blocks, page, kv_heads, dim).to(CACHE_DTYPES[format]), slots.to(device),
            torch.randint(0, 512, (tokens,), generator=random).to(device), table,
            torch.tensor([0.01, 0.02], device=device),
        )  # fmt: skip

    def reference(self, case: RopeCase) -> dict[str, Expected]:
        query, query_size = _turn(case.query.double(), case)
        key, key_size = _turn(case.key.double(), case)
        cache = case.results()["cache"].clone()
        atol = torch.zeros_like(cache)
        at = case.slots >= 0
        slots = case.slots[at]
        new = torch.stack([key[at], case.value[at].double()])
        step = torch.stack([key_size[at] * 2**-8, torch.zeros_like(key_size[at])])
        if case.cache.dtype != torch.bfloat16:
            scales = case.scales.double().view(2, 1, 1, 1)
            new = torch.minimum(torch.maximum(new, -448 * scales), 448 * scales)
            step = step + new.abs() * 2**-4 * 1.01 + scales * 2**-10 * 1.01
        cache.flatten(1, 2)[:, slots] = new
        atol.flatten(1, 2)[:, slots] = step
        return {
            "query": Expected(query, atol=query_size * 2**-8),
            "key": Expected(key, atol=key_size * 2**-8),
            "cache": Expected(cache, atol=atol),
        }

    def run(self, case: RopeCase, variant: Variant) -> None:
        rope_cache(
            case.query, case.key, case.value, case.cache, case.slots, case.positions, case.table, case.scales,
            variant=variant,
        )  # fmt: skip

    def fallback(self, case: RopeCase) -> None:
        for x in (case.query, case.key):
            x.copy_(_turn(x.float(), case)[0].to(torch.bfloat16))
        at = case.slots >= 0
        new = torch.stack([case.key[at], case.value[at]])
        if case.cache.dtype != torch.bfloat16:
            new = (new.float() * (1 / case.scales.view(2, 1, 1, 1))).clamp(-448, 448).to(case.cache.dtype)
        slots = case.slots[at]
        case.cache.view(torch.uint8).flatten(1, 2)[:, slots] = new.view(torch.uint8)


ROPE_CACHE = RopeCache()
