"""Inputs of decode attention, its float64 reference and its torch fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fwopt_kernels.contract import Expected
from fwopt_kernels.rope_cache import CACHE_DTYPES

_STEP = {torch.bfloat16: 2**-8, torch.float8_e4m3fn: 2**-11}
"""Half a step of the probabilities: bfloat16 beside bfloat16 values, float16 beside e4m3 ones."""


@dataclass(frozen=True)
class DecodeCase:
    query: Tensor
    cache: Tensor
    table: Tensor
    lengths: Tensor
    scales: Tensor
    out: Tensor
    softmax_scale: float
    window: int | None = None
    soft_cap: float | None = None

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.double()}


def contexts(sequences: int, shortest: int, context: int) -> list[int]:
    """Lengths from `shortest` to `context`, evenly spaced; a sequence alone has `context`."""
    if sequences == 1:
        return [context]
    return [shortest + i * (context - shortest) // (sequences - 1) for i in range(sequences)]


def random_case(
    format: str, shape: Mapping[str, int], seed: int, padding: int, device: str,
    *, window: int | None, soft_cap: float | None,
) -> DecodeCase:  # fmt: skip
    """Scattered pages. Slots that no context reaches hold NaN; entries of the table that none reaches point nowhere."""
    sequences, heads, kv_heads, dim, page = (
        shape[name] for name in ("sequences", "heads", "kv_heads", "head_dim", "block_size")
    )
    lengths = contexts(sequences, shape["shortest"], shape["context"])
    random = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        values: Tensor = torch.randn(*size, generator=random, device=device, dtype=torch.float32)
        return values

    pages = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(pages) + 2, generator=random, device=device)
    table = torch.full((sequences, max(pages, default=0) + 1), 2**30, dtype=torch.int32, device=device)
    raw = torch.empty(2, len(order), page * kv_heads * dim + padding, dtype=CACHE_DTYPES[format], device=device)
    raw.view(torch.uint8).fill_(0x7F if format == "fp8" else 0xFF)
    cache = raw[..., : page * kv_heads * dim].view(2, len(order), page, kv_heads, dim)
    for i, (length, count) in enumerate(zip(lengths, pages, strict=True)):
        mine = order[sum(pages[:i]) :][:count]
        table[i, :count] = mine.int()
        at = torch.arange(length, device=device)
        values = normal(2, length, kv_heads, dim).to(CACHE_DTYPES[format])
        cache.view(torch.uint8)[:, mine[at // page], at % page] = values.view(torch.uint8)
    return DecodeCase(
        _rows(normal(sequences, heads * dim + padding), heads, dim), cache, table,
        torch.tensor(lengths, dtype=torch.int32, device=device), torch.tensor([0.5, 0.25], device=device),
        _rows(torch.full((sequences, heads * dim + padding), float("nan"), device=device), heads, dim),
        dim**-0.5, window, soft_cap,
    )  # fmt: skip


def _rows(flat: Tensor, heads: int, dim: int) -> Tensor:
    rows: Tensor = flat.to(torch.bfloat16)[:, : heads * dim].view(len(flat), heads, dim)
    return rows


def _attended(case: DecodeCase, i: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sequence `i` in the precision of `dtype`: its result (heads, head_dim), and that of the values' magnitudes."""
    length, page = int(case.lengths[i]), case.cache.shape[2]
    first = max(0, length - case.window) if case.window else 0
    at = torch.arange(first, length, device=case.cache.device)
    cached = case.cache[:, case.table[i].long()[at // page], at % page].to(torch.float32).to(dtype)
    if case.cache.dtype != torch.bfloat16:
        cached = cached * case.scales.to(dtype).view(2, 1, 1, 1)
    keys, values = cached.repeat_interleave(case.query.shape[1] // cached.shape[2], 2)
    logits = torch.einsum("hd,nhd->hn", case.query[i].to(dtype), keys) * case.softmax_scale
    if case.soft_cap:
        logits = case.soft_cap * torch.tanh(logits / case.soft_cap)
    weights = logits.softmax(-1) if length else logits
    result, spread = (torch.einsum("hn,nhd->hd", weights, v) for v in (values, values.abs()))
    return result, spread


def expected(case: DecodeCase) -> dict[str, Expected]:
    """Probabilities are rounded to 16 bits before the product, the result to bfloat16; all else is float32."""
    pairs = [_attended(case, i, torch.float64) for i in range(len(case.lengths))]
    shape = case.out.shape
    values, spread = (torch.stack(part) if part else case.out.new_zeros(shape).double() for part in _columns(pairs))
    return {"out": Expected(values, rtol=2**-8 * 1.01, atol=spread * (_STEP[case.cache.dtype] + 2**-14) + 1e-30)}


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def fallback(case: DecodeCase) -> None:
    for i in range(len(case.lengths)):
        case.out[i] = _attended(case, i, torch.float32)[0].to(torch.bfloat16)
