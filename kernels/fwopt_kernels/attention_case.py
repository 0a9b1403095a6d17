"""Inputs of attention over the paged cache, its float64 reference and its torch fallback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fwopt_kernels.contract import Expected, Work
from fwopt_kernels.rope_cache import CACHE_DTYPES

_STEP = {torch.bfloat16: 2**-8, torch.float8_e4m3fn: 2**-11}
"""Half a step of the probabilities: bfloat16 beside bfloat16 values, float16 beside e4m3 ones."""
_TOGETHER = 256
"""Queries of a chunk whose logits are held at once."""


@dataclass(frozen=True)
class AttentionCase:
    query: Tensor
    """(tokens, heads, head_dim)"""
    cache: Tensor
    table: Tensor
    lengths: Tensor
    scales: Tensor
    out: Tensor
    softmax_scale: float
    window: int | None = None
    soft_cap: float | None = None
    starts: Tensor | None = None
    """(sequences + 1,) first query of each sequence, whose last query is its context's last token; None: one each."""
    sinks: Tensor | None = None
    """(heads,) logits that join each softmax without a value."""

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.double()}

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Each sequence's queries, from and to, and its context."""
        lengths = self.lengths.tolist()
        starts = range(len(lengths) + 1) if self.starts is None else self.starts.tolist()
        return zip(starts[:-1], starts[1:], lengths, strict=True)


def contexts(sequences: int, shortest: int, context: int) -> list[int]:
    """Lengths from `shortest` to `context`, evenly spaced; a sequence alone has `context`."""
    if sequences == 1:
        return [context]
    return [shortest + i * (context - shortest) // (sequences - 1) for i in range(sequences)]


def least_work(format: str, shape: Mapping[str, int], window: int | None) -> Work:
    """Of the cache only what some query sees; products of each query with what it sees. Sinks are not counted."""
    sequences, heads, kv_heads, dim, page = (
        shape[name] for name in ("sequences", "heads", "kv_heads", "head_dim", "block_size")
    )
    pairs = read = queries = pages = 0
    for length in contexts(sequences, shape["shortest"], shape["context"]):
        chunk, most = min(shape.get("tokens", 1), length), min(length, window or length)
        fewer = max(0, most - length + chunk - 1)  # queries that see less than the last one, each one key less
        pairs += chunk * most - fewer * (fewer + 1) // 2
        read += min(length, max(0, most + chunk - 1))
        queries += chunk if "tokens" in shape else 1
        pages += -(-length // page)
    cached = 2 * kv_heads * dim * CACHE_DTYPES[format].itemsize
    integers = pages + sequences + (sequences + 1 if "tokens" in shape else 0)
    return Work(read * cached + 4 * queries * heads * dim + 4 * integers, 4 * pairs * heads * dim)


def random_case(
    format: str, shape: Mapping[str, int], seed: int, padding: int, device: str,
    *, window: int | None, soft_cap: float | None, sinks: bool,
) -> AttentionCase:  # fmt: skip
    """Scattered pages. Slots that no context reaches hold NaN; entries of the table that none reaches point nowhere.
    Where the shape has `tokens`, the last so many tokens of each context are queries, else its last one. Sinks: every
    second one among the logits, the others in turn above and below them all; in bfloat16 beside a cache in it."""
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
    starts = None
    if "tokens" in shape:
        queries = [0, *(min(length, shape["tokens"]) for length in lengths)]
        starts = torch.tensor(queries, device=device).cumsum(0).to(torch.int32)
    rows = sequences if starts is None else int(starts[-1])
    sunk = None
    if sinks:
        far = torch.tensor([0.0, 30.0, 0.0, -30.0], device=device).repeat(-(-heads // 4))[:heads]
        sunk = (2 * normal(heads) + far).to(torch.bfloat16 if format == "bf16" else torch.float32)
    return AttentionCase(
        _rows(normal(rows, heads * dim + padding), heads, dim), cache, table,
        torch.tensor(lengths, dtype=torch.int32, device=device), torch.tensor([0.5, 0.25], device=device),
        _rows(torch.full((rows, heads * dim + padding), float("nan"), device=device), heads, dim),
        dim**-0.5, window, soft_cap, starts, sunk,
    )  # fmt: skip


def _rows(flat: Tensor, heads: int, dim: int) -> Tensor:
    rows: Tensor = flat.to(torch.bfloat16)[:, : heads * dim].view(len(flat), heads, dim)
    return rows


def _attended(case: AttentionCase, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Queries, in the precision of `dtype` their result (queries, heads, head_dim), and that of the values'
    magnitudes."""
    page, kv_heads, device = case.cache.shape[2], case.cache.shape[3], case.cache.device
    for i, (begin, end, length) in enumerate(case.chunks()):
        for start in range(begin, end, _TOGETHER):
            rows = slice(start, min(start + _TOGETHER, end))
            last = torch.arange(rows.start, rows.stop, device=device) + length - end
            first = last - case.window + 1 if case.window else torch.zeros_like(last)
            least = max(0, length - end + rows.start - case.window + 1) if case.window else 0
            at = torch.arange(least, length - end + rows.stop, device=device)
            cached = case.cache[:, case.table[i].long()[at // page], at % page].to(torch.float32).to(dtype)
            if case.cache.dtype != torch.bfloat16:
                cached = cached * case.scales.to(dtype).view(2, 1, 1, 1)
            query = case.query[rows].to(dtype).view(rows.stop - rows.start, kv_heads, -1, case.query.shape[2])
            logits = torch.einsum("ckgd,nkd->kgcn", query, cached[0]) * case.softmax_scale
            if case.soft_cap:
                logits = case.soft_cap * torch.tanh(logits / case.soft_cap)
            hidden = (at > last[:, None]) | (at < first[:, None])
            logits = logits.masked_fill(hidden, -torch.inf)
            if case.sinks is not None:
                sinks = case.sinks.to(dtype).view(kv_heads, -1, 1, 1).expand(*logits.shape[:-1], 1)
                weights = torch.cat((logits, sinks), -1).softmax(-1)[..., :-1]
            else:
                weights = logits.softmax(-1) if length else logits
            result, spread = (torch.einsum("kgcn,nkd->ckgd", weights, v) for v in (cached[1], cached[1].abs()))
            yield rows, result.flatten(1, 2), spread.flatten(1, 2)


def expected(case: AttentionCase) -> dict[str, Expected]:
    """Probabilities are rounded to 16 bits before the product, the result to bfloat16; all else is float32."""
    values, spread = (torch.zeros(case.out.shape, dtype=torch.float64, device=case.out.device) for _ in range(2))
    for rows, result, magnitude in _attended(case, torch.float64):
        values[rows], spread[rows] = result, magnitude
    return {"out": Expected(values, rtol=2**-8 * 1.01, atol=spread * (_STEP[case.cache.dtype] + 2**-14) + 1e-30)}


def fallback(case: AttentionCase) -> None:
    for rows, result, _ in _attended(case, torch.float32):
        case.out[rows] = result.to(torch.bfloat16)
