"""`simulate_stream`: a trace of any length, part by part, in memory that does not grow with it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError
from fwopt.metrics.records import FINISHED, GAP_EDGES_S, UNFINISHED, Records
from fwopt.metrics.streaming import BIN_WIDTH, Accumulator
from fwopt.perf.grid import StepGrid
from fwopt.sim.growth import in_flight, with_ids, with_room
from fwopt.sim.reserve import Reservation
from fwopt.sim.run import drain, run_open
from fwopt.sim.simulator import ROUTERS, admissible, check, id_offsets, tokens, totals
from fwopt.sim.state import MIXED, Sim
from fwopt.sim.tables import build
from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import Slo
from fwopt.spec.outcome import Metrics
from fwopt.spec.provenance import ProvenanceShares
from fwopt.workload.columns import Workload

WAITING = np.dtype([("request", "i8"), ("arrival", "f8"), ("prompt", "i4"), ("output", "i4")])
"""What the records need of a request that is still in flight."""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What happened, without one record a request; the other fields are those of `SimResult`."""

    metrics: Metrics
    quantile_error: float
    """Relative error of any quantile but those of inter-token gaps, whose bins are the simulator's own."""
    provenance: ProvenanceShares
    host_share: float
    iterations: int
    peak_kv_blocks: int
    mean_batch: float
    busy_share: float
    preemptions: int
    peak_in_flight: int
    """Most requests that a part of the trace found in flight, or ended but not yet seen to have: memory follows it, and
    it grows without end when the deployment cannot keep up."""
    wall_s: float
    """Time it all took, reading the parts included."""


def simulate_stream(
    chunks: Iterable[Workload],
    grid: StepGrid,
    kv_blocks: int,
    candidate: Candidate,
    max_context: int,
    *,
    policy: int = MIXED,
    sequence_blocks: int = 0,
    reservation: Reservation | None = None,
    slos: Sequence[Slo] = (),
) -> StreamResult:
    """Replay consecutive parts of one trace as `simulate` replays the whole, request by request the same.

    All parts share one clock (each begins no earlier than the last arrival of the one before) and one space of prefix
    ids, dense or not; an id stands for the same tokens in every part. A part may have any length: some ten thousand
    requests keep both the overhead and the memory small.
    """
    started = time.perf_counter()
    stream: _Stream | None = None
    for chunk in chunks:
        if len(chunk):
            stream = stream or _Stream(
                chunk, grid, kv_blocks, candidate, max_context, policy, sequence_blocks, reservation, slos
            )
            stream.feed(chunk)
    if stream is None:
        raise InputError("the stream has no requests")
    stream.end()
    return stream.result(time.perf_counter() - started)


class _Stream:
    """One simulation between two parts of its trace."""

    def __init__(
        self,
        first: Workload,
        grid: StepGrid,
        kv_blocks: int,
        candidate: Candidate,
        max_context: int,
        policy: int,
        sequence_blocks: int,
        reservation: Reservation | None,
        slos: Sequence[Slo],
    ) -> None:
        check(first, candidate, None, max_context)
        if candidate.speculation is not None:
            raise InputError(f"{candidate.label}: endless traces are simulated without speculation")
        if candidate.router == "cache_aware":
            raise InputError(f"{candidate.label}: a router that remembers prefixes is not simulated on endless traces")
        self.grid, self.candidate, self.max_context = grid, candidate, max_context
        self.acceptable_blocks = kv_blocks - sequence_blocks
        self.block_tokens = first.block_tokens
        bare = replace(first, block_offsets=np.zeros(len(first) + 1, np.int64), block_ids=np.zeros(0, np.int32))
        self.sim: Sim = build(
            bare,
            grid,
            kv_blocks,
            candidate,
            policy,
            slots=0,
            closed=False,
            sequence_blocks=sequence_blocks,
            reservation=reservation,
        )
        self.known: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.waiting: NDArray[Any] = np.zeros(0, dtype=WAITING)
        self.metrics = Accumulator(slos)
        self.seen, self.turn, self.peak = 0, 0, 0
        self.clock = -math.inf

    def feed(self, part: Workload) -> None:
        self._check_part(part)
        batching = self.candidate.batching
        status = admissible(part, batching.block_size, self.acceptable_blocks, self.max_context)
        chosen = np.flatnonzero(status == UNFINISHED)
        if len(chosen) < len(part):
            self._refuse(part, status)
        self.peak = max(self.peak, in_flight(self.sim))
        self.sim = with_room(self.sim, len(chosen))
        offsets, ids = id_offsets(part, chosen, batching.prefix_caching)
        if self.sim.limits["prefix"][0]:
            self.sim, self.known = with_ids(self.sim, self.known, part, ids)
            offsets = offsets + (len(self.sim.ids) - len(ids))
        coming = np.zeros(len(chosen), dtype=WAITING)
        coming["request"], coming["arrival"] = chosen + self.seen, part.arrival_s[chosen]
        coming["prompt"], coming["output"] = part.prompt_tokens[chosen], part.output_tokens[chosen]
        self.waiting = np.concatenate((self.waiting, coming))
        self.seen += len(part)
        self.turn = run_open(
            self.sim,
            ROUTERS[self.candidate.router],
            part.arrival_s[chosen],
            *tokens(part, chosen, self.max_context),
            offsets,
            coming["request"].copy(),
            self.turn,
        )
        self._collect()

    def end(self) -> None:
        self.peak = max(self.peak, in_flight(self.sim))
        drain(self.sim)
        self._collect()

    def _check_part(self, part: Workload) -> None:
        if part.block_tokens != self.block_tokens:
            raise InputError(
                f"all parts of a stream must have prefix blocks of one size, got {part.block_tokens} tokens "
                f"after {self.block_tokens}"
            )
        if part.arrival_s[0] < self.clock:
            raise InputError(
                f"parts of a stream must follow each other on one clock: a part begins at {part.arrival_s[0]:.6f} s, "
                f"the one before ends at {self.clock:.6f} s"
            )
        self.clock = float(part.arrival_s[-1])

    def _refuse(self, part: Workload, status: NDArray[np.int8]) -> None:
        lost = np.flatnonzero(status != UNFINISHED)
        never = np.full(len(lost), math.nan)
        none = np.zeros(len(lost), dtype=np.int32)
        self.metrics.add(
            Records(
                arrival_s=part.arrival_s[lost],
                scheduled_s=never,
                first_token_s=never,
                finish_s=never,
                prompt_tokens=part.prompt_tokens[lost],
                output_tokens=part.output_tokens[lost],
                cached_tokens=none,
                status=status[lost],
                replica=np.full(len(lost), -1, dtype=np.int16),
                preemptions=none,
                itl_edges_s=GAP_EDGES_S,
                itl_counts=np.zeros(0),
            )
        )

    def _collect(self) -> None:
        """Count the requests that have finished, and forget them."""
        records, at = self._finished()
        self.metrics.add(records)
        self.waiting = np.delete(self.waiting, at)
        self.sim.done_count[0] = 0

    def _finished(self) -> tuple[Records, NDArray[np.int64]]:
        done = self.sim.done[: self.sim.done_count[0]]
        at = np.searchsorted(self.waiting["request"], done["request"])
        request = self.waiting[at]
        records = Records(
            arrival_s=request["arrival"],
            scheduled_s=done["scheduled"],
            first_token_s=done["first"],
            finish_s=done["finish"],
            prompt_tokens=request["prompt"],
            output_tokens=request["output"],
            cached_tokens=done["hit"],
            status=np.full(len(done), FINISHED, dtype=np.int8),
            replica=done["replica"],
            preemptions=done["preempted"],
            itl_edges_s=GAP_EDGES_S,
            itl_counts=self.sim.gap_counts,
        )
        return records, at

    def result(self, wall_s: float) -> StreamResult:
        gaps, _ = self._finished()
        return StreamResult(
            metrics=self.metrics.metrics(gaps),
            quantile_error=BIN_WIDTH / 2,
            peak_in_flight=self.peak,
            wall_s=wall_s,
            **totals(self.sim, self.grid, self.metrics.span_s),
        )
