"""What is known of each request, as columns that are allocated once, so that memory does not grow with the run."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.metrics.records import GAP_BINS, GAP_EDGES_S, UNFINISHED

NOT_OFFERED = -1
"""Status of a request that the run did not come to."""
MICROSECOND = 1e-6
TIMES = ("scheduled_s", "started_s", "connected_s", "sent_s", "first_token_s", "last_token_s", "end_s", "retry_after_s")
COUNTS = ("http_status", "prompt_usage", "completion_usage", "cached_usage", "token_events")


def _nan(n: int) -> NDArray[np.float64]:
    return np.full(n, np.nan)


def _none(n: int) -> NDArray[np.int32]:
    return np.full(n, -1, np.int32)


@dataclass(slots=True)
class Rows:
    """One entry a request; seconds since the run's start, NaN or -1 where unknown."""

    scheduled_s: NDArray[np.float64]
    """When it was due. Of a later turn: not before its parent ended. Closed loop: when a place became free."""
    started_s: NDArray[np.float64]
    """When the client turned to it: the arrival of every metric, so that connecting counts as the server's time."""
    connected_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    """The request was handed to the socket."""
    first_token_s: NDArray[np.float64]
    last_token_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    """The stream's end, or the failure."""
    retry_after_s: NDArray[np.float64]
    """Noted, never obeyed."""
    http_status: NDArray[np.int32]
    prompt_usage: NDArray[np.int32]
    completion_usage: NDArray[np.int32]
    cached_usage: NDArray[np.int32]
    token_events: NDArray[np.int32]
    status: NDArray[np.int8]
    errors: dict[int, str] = field(default_factory=dict)
    """At most 400 characters each, of requests that failed."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """Where it is not `length`."""
    chunk_us: array[int] = field(default_factory=lambda: array("I"))
    """Times of token events in microseconds after `started_s`, request after request as they ended; empty when they
    were written to a file instead."""
    chunk_at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where a request's chunk times begin; -1: none kept."""
    running: dict[int, array[int]] = field(default_factory=dict)
    """The server's token count after each event, of answers where it told and events carried several tokens."""
    gap_counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(GAP_BINS))

    @classmethod
    def empty(cls, n: int) -> Rows:
        columns: dict[str, Any] = {name: _nan(n) for name in TIMES} | {name: _none(n) for name in COUNTS}
        return cls(**columns, status=np.full(n, NOT_OFFERED, np.int8), chunk_at=np.full(n, -1, np.int64))

    def __len__(self) -> int:
        return len(self.status)

    def chunks(self, i: int) -> array[int]:
        """Microseconds after `started_s` at which request i's token events came; empty when not kept."""
        at = int(self.chunk_at[i])
        return self.chunk_us[at : at + int(self.token_events[i])] if at >= 0 else array("I")

    def keep_chunks(self, i: int, chunk_us: array[int], running: array[int]) -> None:
        self.chunk_at[i] = len(self.chunk_us)
        self.chunk_us.extend(chunk_us)
        if _tells(running, chunk_us):
            self.running[i] = running

    def count_gaps(self, i: int, chunk_us: array[int], running: array[int]) -> None:
        """Add request i's inter-token gaps; see `gaps`."""
        usage = int(self.completion_usage[i])
        seconds, weights = gaps(chunk_us, usage if usage >= 0 else len(chunk_us), running)
        if len(seconds):
            at = np.clip(np.searchsorted(GAP_EDGES_S, seconds, side="right") - 1, 0, GAP_BINS - 1)
            self.gap_counts += np.bincount(at, weights, minlength=GAP_BINS)

    def row(self, i: int, chunk_us: array[int], running: array[int]) -> dict[str, Any]:
        """Request i as it is written to a file; what is unknown is left out."""
        row: dict[str, Any] = {"request": i, "status": int(self.status[i])}
        for name in TIMES:
            value = float(getattr(self, name)[i])
            if value == value:
                row[name] = value
        for name in COUNTS:
            count = int(getattr(self, name)[i])
            if count >= 0:
                row[name] = count
        if i in self.errors:
            row["error"] = self.errors[i]
        if i in self.finish_reasons:
            row["finish_reason"] = self.finish_reasons[i]
        if len(chunk_us):
            row["chunk_us"] = chunk_us.tolist()
        if _tells(running, chunk_us):
            row["running_tokens"] = running.tolist()
        return row

    def take(self, row: dict[str, Any]) -> None:
        """The inverse of `row`."""
        i = row["request"]
        self.status[i] = row["status"]
        for name in (*TIMES, *COUNTS):
            if name in row:
                getattr(self, name)[i] = row[name]
        if "error" in row:
            self.errors[i] = row["error"]
        if "finish_reason" in row:
            self.finish_reasons[i] = row["finish_reason"]
        if "chunk_us" in row:
            running = array("I", row.get("running_tokens", ()))
            self.keep_chunks(i, array("I", row["chunk_us"]), running)
            self.count_gaps(i, self.chunks(i), running)

    @property
    def offered(self) -> NDArray[np.bool_]:
        return np.asarray(self.status != NOT_OFFERED)

    def cut(self, i: int) -> None:
        """The run ended before request i did."""
        self.status[i] = UNFINISHED


def _tells(running: array[int], chunk_us: array[int]) -> bool:
    """Whether the server's running counts say more than one token an event."""
    return len(running) == len(chunk_us) > 0 and running[-1] != len(running)


def gaps(chunk_us: array[int], tokens: int, running: array[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(seconds, number) of the inter-token gaps of one answer of `tokens` tokens in len(chunk_us) events.

    A token has no time of its own when several come in one event; they are spread evenly over the time since the
    event before, and those that come with the first token have no gap. `running` is the server's token count after each
    event where it tells; otherwise each event after the first counts as carrying (tokens - 1) / (events - 1).
    """
    if len(chunk_us) < 2:
        return np.zeros(0), np.zeros(0)
    between = np.diff(np.frombuffer(chunk_us, np.uint32).astype(np.int64)) * MICROSECOND
    if len(running) == len(chunk_us):
        carried = np.diff(np.frombuffer(running, np.uint32).astype(np.float64))
    else:
        carried = np.full(len(between), max((tokens - 1) / len(between), 1.0))
    several = np.maximum(carried, 1.0)
    return between / several, several
