"""From a candidate's `StepGrid` to the dense arrays of the compiled loop, and back to provenance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.metrics.records import GAP_BINS, GAP_EDGES_S
from fwopt.perf.grid import StepGrid
from fwopt.sim.counts import StepCounts
from fwopt.sim.left_out import LeftOut
from fwopt.sim.reserve import Reservation
from fwopt.sim.state import DONE, LIMITS, MIXED, REPLICA, SLOT, Sim
from fwopt.spec.candidate import Candidate
from fwopt.spec.provenance import CODES, ProvenanceShares
from fwopt.spec.speculation import StepsTaken
from fwopt.workload.columns import Workload


def _padded_tokens(
    grid: StepGrid, budget: int, captured: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(seconds, token count looked up) for steps of 0..budget tokens."""
    count = np.arange(budget + 1)
    seconds = np.interp(count, grid.tokens, grid.token_eager_s)
    if captured and len(grid.capture_sizes):
        at = np.searchsorted(grid.capture_sizes, count)
        inside = at < len(grid.capture_sizes)
        count = np.where(inside, grid.capture_sizes[np.minimum(at, len(grid.capture_sizes) - 1)], count)
        seconds = np.where(inside, np.interp(count, grid.tokens, grid.token_graph_s), seconds)
    seconds[0] = 0.0
    return seconds, count.astype(np.float64)


def _decode_rows(grid: StepGrid, most: int) -> NDArray[np.float64]:
    """decode_s interpolated to every batch size 0..most."""
    batch = np.arange(most + 1, dtype=np.float64)
    at = np.clip(np.searchsorted(grid.decode_batch, batch, side="right") - 1, 0, len(grid.decode_batch) - 2)
    low, high = grid.decode_batch[at], grid.decode_batch[at + 1]
    weight = np.maximum((batch - low) / (high - low), 0.0)[:, None]
    return np.ascontiguousarray(grid.decode_s[at] * (1 - weight) + grid.decode_s[at + 1] * weight)


def _sample_rows(grid: StepGrid, most: int) -> NDArray[np.float64]:
    """sample_s for 0..most rows, on along the last line where more are checked than sequences are tabulated."""
    rows = np.arange(most + 1, dtype=np.float64)
    seconds = np.interp(rows, grid.sample_batch, grid.sample_s)
    slope = np.diff(grid.sample_s[-2:]) / np.diff(grid.sample_batch[-2:])
    seconds += np.maximum(rows - grid.sample_batch[-1], 0.0) * max(float(slope[0]), 0.0)
    return np.asarray(seconds * (rows > 0))


def _drafter(grid: StepGrid) -> NDArray[np.float64]:
    return np.zeros(len(grid.sample_batch)) if grid.drafter_s is None else grid.drafter_s


def _beside(grid: StepGrid, budget: int) -> NDArray[np.float64]:
    """beside_s for chunks of 0..budget tokens."""
    if grid.beside_s is None:
        return np.zeros(budget + 1)
    axis, seconds = np.concatenate(([0.0], grid.tokens)), np.concatenate(([0.0], grid.beside_s))
    return np.interp(np.arange(budget + 1), axis, seconds)


def _replies(guesses: StepsTaken | None) -> dict[str, NDArray[np.int64]]:
    steps = guesses or StepsTaken(lengths=(1,), proposed=(0,), accepted=(0,))
    return {
        "reply_from": np.concatenate(([0], np.cumsum(steps.lengths))).astype(np.int64),
        "proposed": np.asarray(steps.proposed, dtype=np.int64),
        "accepted": np.asarray(steps.accepted, dtype=np.int64),
    }


def _reserving(rule: Reservation | None) -> tuple[bool, float, float, float, int, int]:
    if rule is None:
        return False, 0.0, 0.0, 0.0, 0, 0
    decay = (rule.first - rule.least) / rule.decay_steps
    return True, rule.first, rule.least, decay, rule.most_tokens, rule.retract_steps


def build(
    workload: Workload,
    grid: StepGrid,
    kv_blocks: int,
    candidate: Candidate,
    policy: int,
    *,
    slots: int,
    closed: bool,
    sequence_blocks: int = 0,
    states: bool = False,
    reservation: Reservation | None = None,
    left_out: LeftOut = LeftOut(),
    guesses: StepsTaken | None = None,
    stated: NDArray[np.int64] | None = None,
) -> Sim:
    """Arrays for `slots` requests in flight at once."""
    batching, replicas, drafter = candidate.batching, candidate.parallelism.replicas, candidate.speculation
    most = batching.max_num_seqs
    prefix = batching.prefix_caching
    aligned = states and prefix
    limits = np.zeros(1, dtype=LIMITS)
    limits[0] = (
        most,
        batching.max_num_batched_tokens,
        batching.block_size,
        kv_blocks,
        policy,
        closed,
        prefix,
        not batching.chunked_prefill,
        grid.async_scheduling,
        grid.async_scheduling and policy == MIXED and reservation is None,
        aligned,
        grid.prefill_chunk_floor_s,
        grid.step_cpu_s,
        grid.sequence_cpu_s,
        grid.serial_s,
        grid.sequence_serial_s,
        grid.prefill_step_s,
        grid.beside_step_s,
        sequence_blocks,
        grid.front_s,
        grid.prompt_token_s,
        grid.chunk_s,
        grid.request_s,
        drafter is not None,
        drafter.tokens if drafter is not None and drafter.kind == "draft" else 0,
        grid.lookup_token_s,
        *_reserving(reservation),
        not left_out.eviction,
        not left_out.recompute,
        not left_out.context,
        math.log(GAP_EDGES_S[0]),
        GAP_BINS / math.log(GAP_EDGES_S[-1] / GAP_EDGES_S[0]),
    )
    replica = np.zeros(replicas, dtype=REPLICA)
    for end in ("run_head", "run_tail", "wait_head", "wait_tail", "front_head", "front_tail", "partial", "lru_head",
                "lru_tail", "leaving_head", "leaving_tail"):  # fmt: skip
        replica[end] = -1
    for never in ("front_free", "front_after", "output_s"):
        replica[never] = -math.inf
    replica["ratio_base"] = limits[0]["ratio_first"]
    shared = prefix and workload.block_tokens > 0
    unique = workload.unique_blocks if shared else 0
    id_end, id_blocks = id_lengths(workload, batching.block_size) if shared else (np.zeros(0, np.int64),) * 2
    token_s, _ = _padded_tokens(grid, batching.max_num_batched_tokens)
    mixed_s, _ = _padded_tokens(grid, batching.max_num_batched_tokens, grid.prefill_in_graphs)
    junk = kv_blocks + 1 if prefix else 1
    rows = most * candidate.tokens_per_decode
    return Sim(
        limits=limits,
        replica=replica,
        slot=np.zeros(slots, dtype=SLOT),
        free_slots=np.concatenate(([slots], np.arange(slots)[::-1])).astype(np.int64),
        done=np.zeros(slots, dtype=DONE),
        done_count=np.zeros(1, dtype=np.int64),
        phase=np.zeros((replicas, batching.block_size), dtype=np.int64),
        heap_key=np.zeros((replicas, most + 1), dtype=np.int64),
        heap_slot=np.zeros((replicas, most + 1), dtype=np.int64),
        ids=np.zeros(0, dtype=np.int32),
        id_end=id_end,
        id_blocks=id_blocks,
        id_holder=np.full(unique, -1, dtype=np.int16),
        stated=np.zeros(0, dtype=np.int64) if stated is None else stated,
        id_present=np.zeros((replicas, unique), dtype=np.int8),
        id_refs=np.zeros((replicas, unique), dtype=np.int32),
        id_prev=np.full((replicas, unique), -1, dtype=np.int32),
        id_next=np.full((replicas, unique), -1, dtype=np.int32),
        id_stamp=np.zeros((replicas, unique), dtype=np.int64),
        id_state=np.zeros((replicas, unique if aligned else 0), dtype=np.int32),
        id_state_busy=np.full((replicas, unique if aligned else 0), -1, dtype=np.int64),
        junk_stamp=np.zeros((replicas, junk), dtype=np.int64),
        junk_blocks=np.zeros((replicas, junk), dtype=np.int64),
        token_s=token_s,
        mixed_s=mixed_s,
        sample_s=_sample_rows(grid, rows),
        drafter_s=np.interp(np.arange(most + 1), grid.sample_batch, _drafter(grid)) * (np.arange(most + 1) > 0),
        **_replies(guesses),
        beside_s=_beside(grid, batching.max_num_batched_tokens),
        decode_s=_decode_rows(grid, most),
        decode_context=grid.decode_context,
        prefill_length=grid.prefill_length,
        prefill_s=grid.prefill_s,
        alone_steps=np.zeros(len(token_s)),
        mixed_steps=np.zeros(len(token_s)),
        sampled_steps=np.zeros(rows + 1),
        attended=np.zeros((most + 1, len(grid.decode_context))),
        attended_context=np.zeros((most + 1, len(grid.decode_context))),
        prompted=np.zeros((4, most.bit_length(), len(grid.prefill_length), len(grid.prefill_length))),
        spent_decode=np.zeros((most + 1, len(grid.decode_context))),
        spent_prefill=np.zeros(len(grid.prefill_length)),
        gap_counts=np.zeros(GAP_BINS),
    )


def count_steps(sim: Sim, grid: StepGrid) -> StepCounts:
    """What was stepped over, by what GPUs saw of it: tokens padded where a captured graph was replayed."""
    budget = len(sim.token_s) - 1
    tokens = np.zeros(budget + 1)
    for steps, captured in ((sim.alone_steps, True), (sim.mixed_steps, grid.prefill_in_graphs)):
        at = np.arange(budget + 1) if not captured else _padded_tokens(grid, budget)[1].astype(np.int64)
        np.add.at(tokens, np.minimum(at, budget), steps)
    some = np.flatnonzero(tokens)
    batch, cell = np.nonzero(sim.attended)
    steps = sim.attended[batch, cell]
    prompted = sim.prompted[:, sim.prompted[0] > 0]
    return StepCounts(
        tokens=some,
        token_steps=tokens[some],
        batch=batch,
        context=sim.attended_context[batch, cell] / steps,
        decode_steps=steps,
        chunks=prompted[1] / prompted[0],
        chunk_tokens=prompted[2] / prompted[1],
        chunk_context=prompted[3] / prompted[1],
        chunk_steps=prompted[0],
    )


def id_lengths(workload: Workload, block_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per prefix id: tokens up to its end (the last block of a prompt may be short) and KV blocks it stands for."""
    counts = np.diff(workload.block_offsets)
    position = np.arange(len(workload.block_ids)) - np.repeat(workload.block_offsets[:-1], counts)
    end = np.minimum((position + 1) * workload.block_tokens, np.repeat(workload.prompt_tokens, counts))
    id_end = np.full(workload.unique_blocks, np.iinfo(np.int64).max)
    np.minimum.at(id_end, workload.block_ids, end)
    id_start = np.zeros(workload.unique_blocks, dtype=np.int64)
    id_start[workload.block_ids] = position * workload.block_tokens
    return id_end, np.maximum(id_end // block_size - id_start // block_size, 0)


def _nearest(points: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    middles = (points[1:] + points[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.int64)


def shares_of_time(sim: Sim, grid: StepGrid) -> ProvenanceShares:
    """Weigh each table entry's provenance with the time that was spent on it."""
    _, looked_up = _padded_tokens(grid, len(sim.token_s) - 1)
    sampled, batch = (np.arange(len(a), dtype=np.float64) for a in (sim.sample_s, sim.spent_decode))
    spent_token = sim.alone_steps * sim.token_s + sim.mixed_steps * sim.mixed_s
    total = spent_token @ grid.token_share[_nearest(grid.tokens, looked_up)]
    total = total + (sim.sampled_steps * sim.sample_s) @ grid.sample_share[_nearest(grid.sample_batch, sampled)]
    total = total + sim.spent_prefill @ grid.prefill_share
    rows: Any = grid.decode_share[_nearest(grid.decode_batch, batch)]
    total = total + np.einsum("bc,bck->k", sim.spent_decode, rows)
    whole = float(total.sum())
    if whole <= 0:
        return ProvenanceShares()
    return ProvenanceShares(**{name: float(part) / whole for name, part in zip(CODES, total, strict=True)})
