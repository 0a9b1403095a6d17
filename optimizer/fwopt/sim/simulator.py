"""`simulate`: a workload, a candidate's step times and its KV blocks in; one record a request out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError
from fwopt.metrics.records import FINISHED, GAP_EDGES_S, REJECTED_CONTEXT, REJECTED_KV, UNFINISHED, Records
from fwopt.perf.grid import StepGrid
from fwopt.sim.counts import StepCounts
from fwopt.sim.left_out import LeftOut
from fwopt.sim.reserve import Reservation
from fwopt.sim.routing import CACHE_AWARE, LEAST_REQUESTS, ROUND_ROBIN
from fwopt.sim.run import drain, run_closed, run_open
from fwopt.sim.state import MIXED
from fwopt.sim.tables import build, count_steps, shares_of_time
from fwopt.spec.candidate import Candidate
from fwopt.spec.provenance import ProvenanceShares
from fwopt.spec.router import RouterPolicy
from fwopt.spec.speculation import StepsTaken
from fwopt.workload.columns import Workload

Tokens = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""(prompt, output, allowed)"""
ROUTERS: dict[RouterPolicy, int] = {
    "round_robin": ROUND_ROBIN,
    "least_requests": LEAST_REQUESTS,
    "cache_aware": CACHE_AWARE,
}


@dataclass(frozen=True, slots=True)
class SimResult:
    """What happened, and on what evidence."""

    records: Records
    provenance: ProvenanceShares
    host_share: float
    """Share of busy time in which the GPU waited for the host."""
    iterations: int
    peak_kv_blocks: int
    """Most blocks referenced at once on any replica."""
    mean_batch: float
    """Sequences in a step, weighted by time."""
    busy_share: float
    """Share of the run in which the average replica had work."""
    preemptions: int
    wall_s: float
    """Time the simulation itself took, compilation apart."""
    compile_s: float
    """Time to compile the loop, or to load it compiled: next to nothing but for the first call in a process."""
    steps: StepCounts | None
    """Of which shapes the steps were; None: not asked for."""


def simulate(
    workload: Workload,
    grid: StepGrid,
    kv_blocks: int,
    candidate: Candidate,
    max_context: int,
    *,
    policy: int = MIXED,
    concurrency: int | None = None,
    sequence_blocks: int = 0,
    states: bool = False,
    reservation: Reservation | None = None,
    left_out: LeftOut = LeftOut(),
    count: bool = False,
    guesses: StepsTaken | None = None,
    cached_tokens: NDArray[np.integer[Any]] | None = None,
) -> SimResult:
    """Replay `workload` on `candidate.parallelism.replicas` equal replicas.

    `kv_blocks` is per replica; `max_context` the longest prompt + output that the server accepts, beyond
    it a request is rejected at arrival, as the server does. `concurrency` ignores the recorded arrivals and
    keeps that many requests in flight on one replica (closed loop). `sequence_blocks` are held by every running
    sequence besides those for its tokens (windows of sliding layers, states of linear attention). `states`: among them
    are states, as vLLM keeps them in a prefix cache. `reservation`: admission as SGLang's, else as
    vLLM's. `count`: the steps by their shapes, too. `guesses`: what the candidate's drafter achieved on replies; each
    request goes by those of one of them. `cached_tokens` (n,): what each prompt finds cached, down to whole blocks, in
    place of what the workload shares. Deterministic.
    """
    if cached_tokens is not None:
        workload = replace(workload, block_tokens=0)
        caching = {"prefix_caching": candidate.batching.prefix_caching or bool(cached_tokens.any())}
        candidate = candidate.model_copy(update={"batching": candidate.batching.model_copy(update=caching)})
    check(workload, candidate, concurrency, max_context)
    _check_guessing(candidate, guesses, plain=policy == MIXED and reservation is None)
    started = time.perf_counter()
    status = admissible(workload, candidate.batching.block_size, kv_blocks - sequence_blocks, max_context)
    chosen = np.flatnonzero(status == UNFINISHED)
    sim = build(
        workload, grid, kv_blocks, candidate, policy,
        slots=len(chosen), closed=concurrency is not None, sequence_blocks=sequence_blocks, states=states,
        reservation=reservation, left_out=left_out, guesses=guesses,
        stated=None if cached_tokens is None else cached_tokens.astype(np.int64),
    )  # fmt: skip
    offsets, ids_kept = id_offsets(workload, chosen, candidate.batching.prefix_caching)
    sim = sim._replace(ids=ids_kept)
    arrival = workload.arrival_s[chosen].copy()
    load = (arrival, *tokens(workload, chosen, max_context), offsets, chosen)
    compile_s = _compile(sim, closed=concurrency is not None)
    if concurrency is None:
        run_open(sim, ROUTERS[candidate.router], *load, 0)
        drain(sim)
    else:
        run_closed(sim, concurrency, *load)
    records = _records(workload, sim, status, chosen, arrival)
    ended = records.finish_s[records.status == FINISHED]
    span = float(ended.max() - records.arrival_s.min()) if len(ended) else 0.0
    took = time.perf_counter() - started
    return SimResult(
        records=records, wall_s=took - compile_s, compile_s=compile_s,
        steps=count_steps(sim, grid) if count else None,
        **totals(sim, grid, span),
    )  # fmt: skip


def _compile(sim: Any, *, closed: bool) -> float:
    """Seconds that a call of the loop takes with nobody to serve."""
    started = time.perf_counter()
    arrival, none = np.zeros(0), np.zeros(0, dtype=np.int64)
    if closed:
        run_closed(sim, 1, arrival, none, none, none, none, none)
    else:
        run_open(sim, ROUND_ROBIN, arrival, none, none, none, none, none, 0)
        drain(sim)
    return time.perf_counter() - started


def check(workload: Workload, candidate: Candidate, concurrency: int | None, max_context: int) -> None:
    batching, replicas = candidate.batching, candidate.parallelism.replicas
    if len(workload) == 0:
        raise InputError(f"workload '{workload.name}' has no requests")
    if batching.max_num_seqs > batching.max_num_batched_tokens:
        raise InputError(
            f"max_num_batched_tokens must be at least max_num_seqs (every running sequence needs a token), "
            f"got {batching.max_num_batched_tokens} < {batching.max_num_seqs}"
        )
    if not batching.chunked_prefill and batching.max_num_batched_tokens < max_context:
        raise InputError(
            f"max_num_batched_tokens must be at least max_model_len without chunked prefill (a prompt is computed "
            f"whole), got {batching.max_num_batched_tokens} < {max_context}"
        )
    if concurrency is not None and (concurrency < 1 or replicas != 1):
        raise InputError(f"a closed load needs at least 1 in flight on 1 replica, got {concurrency} on {replicas}")
    if candidate.router == "cache_aware" and replicas > 1 and not (batching.prefix_caching and workload.block_tokens):
        raise InputError(
            f"router cache_aware follows prefixes, so it needs prefix_caching (here {batching.prefix_caching}) and a "
            f"trace that records which prompts share them ('{workload.name}': "
            f"{'yes' if workload.block_tokens else 'no'}); use least_requests"
        )


def _check_guessing(candidate: Candidate, guesses: StepsTaken | None, *, plain: bool) -> None:
    drafter = candidate.speculation
    if (drafter is None) != (guesses is None):
        raise InputError(f"{candidate.label}: a drafter must come with the steps that it achieved, and only then")
    if drafter is not None and not plain:
        raise InputError(f"{candidate.label}: speculation is simulated under vLLM's scheduler only")


def admissible(workload: Workload, block_size: int, kv_blocks: int, max_context: int) -> NDArray[np.int8]:
    """Status per request: UNFINISHED where the server accepts it, the reason otherwise.

    A server compares prompt + max_tokens with its context length; where the client sent no max_tokens,
    the output that the request really had must fit.
    """
    total = workload.prompt_tokens.astype(np.int64) + np.maximum(workload.output_tokens, workload.max_tokens)
    blocks = -(-(workload.prompt_tokens.astype(np.int64) + workload.output_tokens - 1) // block_size)
    status = np.full(len(workload), UNFINISHED, dtype=np.int8)
    status[blocks > kv_blocks] = REJECTED_KV
    status[total > max_context] = REJECTED_CONTEXT
    return status


def tokens(workload: Workload, chosen: NDArray[np.int64], max_context: int) -> Tokens:
    """(prompt, output, allowed) of the chosen requests; without max_tokens the context is the limit."""
    prompt, output, most = (
        column[chosen].astype(np.int64)
        for column in (workload.prompt_tokens, workload.output_tokens, workload.max_tokens)
    )
    return prompt, output, np.where(most > 0, most, np.maximum(max_context - prompt, 1))


def id_offsets(
    workload: Workload, chosen: NDArray[np.int64], prefix: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where each chosen request's prefix ids lie."""
    if not prefix or workload.block_tokens == 0:
        return np.zeros(len(chosen) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32)
    if len(chosen) == len(workload):
        return workload.block_offsets, workload.block_ids
    counts = np.diff(workload.block_offsets)
    kept = np.zeros(len(workload), dtype=bool)
    kept[chosen] = True
    return np.concatenate(([0], np.cumsum(counts[chosen]))), workload.block_ids[np.repeat(kept, counts)]


def _records(
    workload: Workload,
    sim: Any,
    status: NDArray[np.int8],
    chosen: NDArray[np.int64],
    arrival: NDArray[np.float64],
) -> Records:
    """Completions back into trace order."""
    done = sim.done[: sim.done_count[0]]
    at, n = done["request"], len(workload)
    times = {name: np.full(n, math.nan) for name in ("scheduled", "first", "finish")}
    for name, column in times.items():
        column[at] = done[name]
    status = status.copy()
    status[at] = FINISHED
    cached = np.zeros(n, dtype=np.int32)
    replica = np.full(n, -1, dtype=np.int16)
    preempted = np.zeros(n, dtype=np.int32)
    cached[at], replica[at], preempted[at] = done["hit"], done["replica"], done["preempted"]
    arrivals = workload.arrival_s.copy()
    arrivals[chosen] = arrival
    return Records(
        arrival_s=arrivals,
        scheduled_s=times["scheduled"],
        first_token_s=times["first"],
        finish_s=times["finish"],
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        cached_tokens=cached,
        status=status,
        replica=replica,
        preemptions=preempted,
        itl_edges_s=GAP_EDGES_S,
        itl_counts=sim.gap_counts,
    )


def totals(sim: Any, grid: StepGrid, span_s: float) -> dict[str, Any]:
    """What all replicas did together; `span_s` from the first arrival to the last completion."""
    replica = sim.replica
    busy = float(replica["busy_s"].sum())
    return {
        "provenance": shares_of_time(sim, grid),
        "host_share": float(replica["host_s"].sum()) / busy if busy else 0.0,
        "iterations": int(replica["steps"].sum()),
        "peak_kv_blocks": int(replica["peak_used"].max()),
        "mean_batch": float(replica["batch_s"].sum()) / busy if busy else 0.0,
        "busy_share": min(1.0, busy / (span_s * len(replica))) if span_s else 0.0,
        "preemptions": int(replica["preemptions"].sum()),
    }
