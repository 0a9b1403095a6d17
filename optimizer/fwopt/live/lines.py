"""Lines of a replay's file between its header and its end; these types are the published schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fwopt.spec.base import Frozen

Count = Annotated[int, Field(ge=0)]
Seconds = float


class ReplayWanted(Frozen):
    """Second line: the trace's lengths, without which token counts could not be judged again."""

    kind: Literal["wanted"] = "wanted"
    prompt_tokens: list[int]
    output_tokens: list[int]


class ReplayLine(Frozen):
    """One request, in the order in which they ended. Seconds since the run's start; absent: it never came so far."""

    request: Count
    """Index in the workload."""
    status: Annotated[int, Field(ge=0, le=8)]
    """0 finished, 1 exceeds context length, 3 unfinished, 4 failed, 5 unreachable, 6 broken off, 7 timed out,
    8 parent failed."""
    scheduled_s: Seconds | None = None
    """When it was due; of a later turn, not before its parent's end."""
    started_s: Seconds | None = None
    """When the client turned to it: the arrival of every metric."""
    connected_s: Seconds | None = None
    sent_s: Seconds | None = None
    first_token_s: Seconds | None = None
    last_token_s: Seconds | None = None
    end_s: Seconds | None = None
    """The stream's end, or the failure."""
    retry_after_s: Seconds | None = None
    http_status: Count | None = None
    prompt_usage: Count | None = None
    """The server's own count, as the next two."""
    completion_usage: Count | None = None
    cached_usage: Count | None = None
    token_events: Count | None = None
    """Events that carried tokens."""
    chunk_us: list[Count] | None = None
    """When each of them came, in microseconds after `started_s`."""
    running_tokens: list[Count] | None = None
    """The server's token count after each of them, where it told and it is not 1, 2, 3, ..."""
    error: str | None = None
    """In the server's own words, or the client's."""
    finish_reason: str | None = None
    """Where it is not `length`."""
