"""What a workload is like: the facts that `fwopt inspect` shows and that sizing rests on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.workload.arrivals import Grain, Rate, busiest, grain, rate
from fwopt.workload.columns import Workload

HINT_TPOT_S = 0.05
"""Pace at which the concurrency hint counts: the slowest that still reads fluently."""
_HINT_SPAN_S = 120.0


class Lengths(Frozen):
    """Distribution of a token count over requests; quantiles are lengths that occur (the lower neighbour)."""

    total: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    max: int


class PrefixSharing(Frozen):
    """What a prefix cache could save, at best: one that never evicts, shared by all requests, filled on arrival."""

    block_tokens: int
    blocks: int
    unique_blocks: int
    hit_share: float
    """Share of all prompt tokens that lie in leading blocks seen in an earlier request."""
    hit_requests_share: float
    """Share of requests with at least one such block."""
    informed_share: float
    """Share of requests that carry prefix blocks; the others count as no hit."""
    working_set_tokens: int
    """Tokens the cache would hold in the end."""


class Sessions(Frozen):
    """Conversations and agent runs."""

    sessions: int
    requests_share: float
    """Share of requests that belong to one."""
    turns_mean: float
    turns_max: int
    continued_share: float
    """Share of requests that name the request they continue."""


class NameShare(Frozen):
    """Requests of one model or adapter."""

    name: str | None
    """None: requests that name none."""
    requests: int
    prompt_tokens: int
    output_tokens: int


class Concurrency(Frozen):
    """Requests decoding at once if every token took `tpot_s`, by Little's law: a hint of scale, not a prediction."""

    tpot_s: float
    mean: float
    peak: float
    """In the minute whose requests ask for most output."""


class Statistics(Frozen):
    """Facts of one workload."""

    schema_version: int = SCHEMA_VERSION
    name: str
    source_format: str
    digest: str
    requests: int
    duration_s: float
    """First to last arrival."""
    rate: Rate
    grain: Grain
    prompt_tokens: Lengths
    output_tokens: Lengths
    max_context_tokens: int
    """Longest prompt plus output of one request."""
    limited_share: float
    """Share of requests for which the client's max_tokens is known."""
    prefix: PrefixSharing | None
    """None: the trace tells nothing of prefixes."""
    sessions: Sessions | None
    models: tuple[NameShare, ...]
    adapters: tuple[NameShare, ...]
    tools_share: float
    """Share of requests that offer tools."""
    concurrency: Concurrency | None
    """None for traces under two minutes, over which nothing averages out."""


def statistics(workload: Workload) -> Statistics:
    both = workload.prompt_tokens.astype(np.int64) + workload.output_tokens
    return Statistics(
        name=workload.name,
        source_format=workload.source_format,
        digest=workload.digest,
        requests=len(workload),
        duration_s=workload.duration_s,
        rate=rate(workload),
        grain=grain(workload),
        prompt_tokens=lengths(workload.prompt_tokens),
        output_tokens=lengths(workload.output_tokens),
        max_context_tokens=int(both.max()),
        limited_share=float(np.mean(workload.max_tokens > 0)),
        prefix=prefix_sharing(workload),
        sessions=_sessions(workload),
        models=_shares(workload, workload.model, workload.models),
        adapters=_shares(workload, workload.adapter, workload.adapters),
        tools_share=float(np.mean(workload.tools > 0)),
        concurrency=_concurrency(workload),
    )


def lengths(tokens: NDArray[np.int32]) -> Lengths:
    p50, p90, p95, p99 = (int(v) for v in np.quantile(tokens, (0.5, 0.9, 0.95, 0.99), method="lower"))
    total = int(tokens.sum(dtype=np.int64))
    return Lengths(total=total, mean=total / len(tokens), p50=p50, p90=p90, p95=p95, p99=p99, max=int(tokens.max()))


def prefix_sharing(workload: Workload) -> PrefixSharing | None:
    if not workload.block_tokens:
        return None
    per_request = np.diff(workload.block_offsets)
    owner = np.repeat(np.arange(len(workload)), per_request)
    first = np.zeros(workload.unique_blocks, np.int64)
    first[workload.block_ids[::-1]] = owner[::-1]
    seen = first[workload.block_ids] < owner
    hits = np.bincount(owner[seen], minlength=len(workload))
    tokens = np.minimum(hits * workload.block_tokens, workload.prompt_tokens)
    # a block's own size: the last block of a prompt may be partial
    start = (np.arange(len(owner)) - workload.block_offsets[owner]) * workload.block_tokens
    sizes = np.minimum(workload.block_tokens, workload.prompt_tokens[owner] - start)
    return PrefixSharing(
        block_tokens=workload.block_tokens,
        blocks=len(workload.block_ids),
        unique_blocks=workload.unique_blocks,
        hit_share=float(tokens.sum() / workload.prompt_tokens.sum(dtype=np.int64)),
        hit_requests_share=float(np.mean(hits > 0)),
        informed_share=float(np.mean(per_request > 0)),
        working_set_tokens=int(sizes[~seen].sum()),
    )


def _sessions(workload: Workload) -> Sessions | None:
    known = workload.session[workload.session >= 0]
    continued = float(np.mean(workload.parent >= 0))
    if not len(known) and not continued:
        return None
    turns = np.bincount(known)
    return Sessions(
        sessions=len(turns),
        requests_share=len(known) / len(workload),
        turns_mean=float(turns.mean()) if len(turns) else 0.0,
        turns_max=int(turns.max()) if len(turns) else 0,
        continued_share=continued,
    )


def _shares(workload: Workload, codes: NDArray[np.int16], names: tuple[str, ...]) -> tuple[NameShare, ...]:
    """Most requests first; empty when the trace names none."""
    if not names:
        return ()
    counts, prompts, outputs = (
        np.bincount(codes + 1, weights=weights, minlength=len(names) + 1)
        for weights in (None, workload.prompt_tokens, workload.output_tokens)
    )
    shares = [
        NameShare(name=name, requests=int(counts[i]), prompt_tokens=int(prompts[i]), output_tokens=int(outputs[i]))
        for i, name in enumerate((None, *names))
        if counts[i]
    ]
    return tuple(sorted(shares, key=lambda share: -share.requests))


def _concurrency(workload: Workload) -> Concurrency | None:
    if workload.duration_s < _HINT_SPAN_S:
        return None
    produced = float(workload.output_tokens.sum(dtype=np.int64)) / workload.duration_s
    minute = busiest(workload.arrival_s, 60.0, workload.output_tokens)
    peak = float(workload.output_tokens[minute].sum(dtype=np.int64)) / 60
    return Concurrency(tpot_s=HINT_TPOT_S, mean=produced * HINT_TPOT_S, peak=peak * HINT_TPOT_S)
