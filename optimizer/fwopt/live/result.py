"""What a replay found: raw rows, records, and whether they may be believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fwopt.live import problems as rules
from fwopt.live.cache import CacheState
from fwopt.live.load import Load
from fwopt.live.options import ReplayOptions
from fwopt.live.problems import Lag, Problem
from fwopt.live.rows import Rows
from fwopt.metrics.records import FINISHED, GAP_EDGES_S, Records
from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.engine import EngineName


class EndpointFacts(Frozen):
    """The server as it was addressed; never its key."""

    url: str
    model: str
    engine: EngineName | None
    api: Literal["completions", "chat"]
    max_context_tokens: int | None


class ClientEnvironment(Frozen):
    """What the client ran on."""

    fwopt: str
    python: str
    platform: str
    cpus: int
    packages: dict[str, str]


class ReplayHeader(Frozen):
    """First line of a replay's file."""

    kind: Literal["replay"] = "replay"
    schema_version: int = SCHEMA_VERSION
    started_at: str
    """UTC, ISO 8601."""
    environment: ClientEnvironment
    endpoint: EndpointFacts
    load: Load
    options: ReplayOptions
    workload: str
    workload_digest: str
    requests: int
    """Of the workload's first so many."""
    cache: CacheState
    prompt_form: Literal["ids", "text"]
    vocabulary: str
    """Which tokens prompts were made of."""
    chat_template_tokens: int
    """Tokens that the server puts around a prompt: its chat template, or a begin-of-text; part of the prompt length."""
    forced: bool
    """The server was told to make each output exactly as long as the trace's."""
    warm_up_failures: int = 0


class ReplayEnd(Frozen):
    """Last line of a replay's file; missing when the client was killed."""

    kind: Literal["end"] = "end"
    complete: bool
    """Every request's fate is known."""
    duration_s: float
    clock_lag: Lag


@dataclass(frozen=True, slots=True)
class Replay:
    """One workload, replayed on one server."""

    header: ReplayHeader
    prompt_tokens: NDArray[np.int32]
    """The trace's, of the requests that were to be sent."""
    output_tokens: NDArray[np.int32]
    rows: Rows
    end: ReplayEnd

    @property
    def send_lag(self) -> Lag:
        return rules.send_lag(self.rows)

    @property
    def cache(self) -> CacheState:
        return self.header.cache

    @property
    def problems(self) -> tuple[Problem, ...]:
        return rules.find(
            self.rows,
            self.prompt_tokens,
            self.output_tokens,
            forced=self.header.forced,
            clock_lag=self.end.clock_lag,
            complete=self.end.complete,
            warm_up_failures=self.header.warm_up_failures,
        )

    @property
    def valid(self) -> bool:
        """The client kept up, lengths were the trace's, and it came to the end. Failures of the server are findings."""
        return not any(problem.invalidates for problem in self.problems)

    @property
    def offered(self) -> NDArray[np.intp]:
        """Indices, in the workload, of the entries of `records`."""
        return np.flatnonzero(self.rows.offered)

    @property
    def records(self) -> Records:
        """What `summarize` takes: every request the run came to, failed ones included.

        `arrival_s` is when the client turned to the request, or when it was due if it was never sent. When the server
        scheduled it, and on which replica, a client cannot see.
        """
        rows, at = self.rows, self.offered
        status = rows.status[at]
        answered = status == FINISHED
        arrival = np.where(np.isfinite(rows.started_s), rows.started_s, rows.scheduled_s)[at]
        counted = np.where(rows.completion_usage >= 0, rows.completion_usage, rows.token_events)[at]
        prompt = np.where(rows.prompt_usage >= 0, rows.prompt_usage, self.prompt_tokens)[at]
        return Records(
            arrival_s=arrival,
            scheduled_s=np.full(len(at), np.nan),
            first_token_s=rows.first_token_s[at],
            finish_s=np.where(answered, rows.last_token_s[at], np.nan),
            prompt_tokens=prompt.astype(np.int32),
            output_tokens=np.where(answered, counted, self.output_tokens[at]).astype(np.int32),
            cached_tokens=np.maximum(rows.cached_usage[at], 0),
            status=status,
            replica=np.full(len(at), -1, np.int16),
            preemptions=np.zeros(len(at), np.int32),
            itl_edges_s=GAP_EDGES_S,
            itl_counts=rows.gap_counts,
        )

    def save(self, path: Path) -> None:
        """Gzip JSON lines; appears under its name only when complete."""
        from fwopt.live.files import save

        save(self, path)

    @staticmethod
    def load(path: Path) -> Replay:
        """A saved replay, or what a killed client left in its `.partial` file."""
        from fwopt.live.files import load

        return load(path)
