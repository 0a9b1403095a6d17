"""What `fwopt record` adds to the own format: how each request was served, and requests that are no load to plan for.

None of it changes the workload: it is checked, counted, and said in the notes.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from fwopt.spec.base import Frozen
from fwopt.workload.builder import MAX_TOKENS, Builder
from fwopt.workload.formats.base import in_part_note, is_in_part

Count = Annotated[int, Field(ge=0, le=MAX_TOKENS, strict=True)]
Span = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Status = Annotated[int, Field(ge=100, le=599, strict=True)]
Api = Literal["completions", "chat", "responses"]
Estimate = Literal["prompt_tokens", "output_tokens"]
Cut = Literal["client", "upstream", "recorder"]
Reason = Literal[
    "refused", "unreachable", "disconnected", "broken", "several answers", "several prompts", "no output", "no usage"
]


class Observed(Frozen):
    """How one request was served when it was recorded; planning does not need it."""

    first_token_s: Span | None = None
    """Seconds from arrival to the first output, as a client of the recording saw it; streamed replies only."""
    end_s: Span | None = None
    """Seconds from arrival to the end of the reply."""
    status: Status | None = None
    """HTTP status of the reply."""
    api: Api | None = None
    """Which part of the OpenAI API was called."""
    stream: Annotated[bool, Field(strict=True)] | None = None
    """Whether the reply was streamed."""
    finish_reason: Annotated[str, Field(min_length=1)] | None = None
    """Why generation ended, in the server's words."""
    cut: Cut | None = None
    """Who broke the reply off before its end (the recorder only when it was told to stop);
    `output_tokens` is what had come until then."""
    tool_calls: Count | None = None
    """Number of tool calls in the reply."""
    cached_tokens: Count | None = None
    """Prompt tokens that the server said it took from its prefix cache."""
    prompt_bytes: Count | None = None
    """Bytes of prompt text under the request's prefix blocks; see `block_bytes` of the header."""
    estimated: list[Estimate] | None = None
    """Counts that no server gave: chunks for output tokens, a quarter of the bytes for prompt tokens."""
    text: dict[str, Any] | None = None
    """Prompt and reply, only where they were recorded on purpose (`--with-text`)."""


class LeftOutLine(Frozen):
    """A request that is no load to plan for, and why: it takes the place of a request line in a recording."""

    left_out: Reason
    """refused: the server answered with an error; unreachable: no server; disconnected: the client left before any
    output; broken: the server broke off before any output; several answers, several prompts: tokens of one request
    are not known apart; no output: none produced; no usage: a reply that tells no token counts."""
    arrival_s: Span
    end_s: Span
    status: Status | None = None
    api: Api
    model: str | None = None


OBSERVED = frozenset(Observed.model_fields)
_WORDS: dict[str, tuple[str, ...]] = {"api": get_args(Api), "cut": get_args(Cut)}
_LEFT_OUT = frozenset(LeftOutLine.model_fields)


class RecordedRows:
    """Checks and counts the recorded part of a file; the builder takes the rest."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._block_bytes = self._bytes = self._bytes_tokens = self._estimated = self._in_part = 0
        self._reasons: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()

    def header(self, row: dict[str, Any]) -> bool:
        """Whether the file is a recording in order of completion."""
        bad, size, order = self._builder.bad, row.get("block_bytes"), row.get("order")
        if size is not None:
            if type(size) is not int or not 1 <= size <= MAX_TOKENS:
                bad("block_bytes", f"must be a whole number from 1 to {MAX_TOKENS}", size)
            if row.get("block_tokens") is not None:
                bad("block_bytes", "takes the place of block_tokens; give one of them", size)
            self._block_bytes, self._builder.block_tokens = size, 1
        if order not in (None, "arrival", "completion"):
            bad("order", "must be arrival or completion", order)
        if order == "completion":
            self._builder.sort_by_arrival()
        return order == "completion"

    def check(self, row: dict[str, Any]) -> None:
        for field in OBSERVED & row.keys():
            if row[field] is not None:
                self._check(field, row[field])

    def _check(self, field: str, value: Any) -> None:
        bad = self._builder.bad
        match field:
            case "first_token_s" | "end_s":
                if type(value) not in (int, float) or not 0 <= value < 1e18:
                    bad(field, "must be a finite number of seconds, not below zero", value)
            case "status":
                if type(value) is not int or not 100 <= value <= 599:
                    bad(field, "must be an HTTP status from 100 to 599", value)
            case "tool_calls" | "cached_tokens" | "prompt_bytes":
                if type(value) is not int or not 0 <= value <= MAX_TOKENS:
                    bad(field, f"must be a whole number from 0 to {MAX_TOKENS}", value)
            case "stream":
                if type(value) is not bool:
                    bad(field, "must be true or false", value)
            case "finish_reason":
                if type(value) is not str or not value:
                    bad(field, "must be a non-empty string", value)
            case "api" | "cut":
                if value not in _WORDS[field]:
                    bad(field, f"must be one of {', '.join(_WORDS[field])}", value)
            case "estimated":
                if type(value) is not list or any(name not in get_args(Estimate) for name in value):
                    bad(field, f"must list some of {', '.join(get_args(Estimate))}", value)
            case "text":
                if type(value) is not dict:
                    bad(field, "must be an object", type(value).__name__)

    def prefix(self, row: dict[str, Any]) -> Any:
        """The request's blocks, unless they are of text that is not the whole prompt."""
        return None if self._block_bytes and self._holds_part(row) else row.get("prefix_blocks")

    def _holds_part(self, row: dict[str, Any]) -> bool:
        size, tokens = row.get("prompt_bytes"), row.get("prompt_tokens")
        return type(size) is int and type(tokens) is int and bool(row.get("prefix_blocks")) and is_in_part(tokens, size)

    def count(self, row: dict[str, Any]) -> None:
        """After the builder took the request."""
        if self._block_bytes and self._holds_part(row):
            self._in_part += 1
        elif row.get("prompt_bytes") and row.get("prefix_blocks"):
            self._bytes += row["prompt_bytes"]
            self._bytes_tokens += row["prompt_tokens"]
        if row.get("estimated"):
            self._estimated += 1
        if row.get("cut"):
            self._cut[row["cut"]] += 1

    def left_out(self, row: dict[str, Any]) -> None:
        reason = row["left_out"]
        if reason not in get_args(Reason):
            self._builder.bad("left_out", f"must be one of {', '.join(get_args(Reason))}", reason)
        if not _LEFT_OUT.issuperset(row):
            self._builder.bad(min(row.keys() - _LEFT_OUT), "is no field of a request that was left out", reason)
        status = row.get("status")
        self._reasons[f"{reason} with {status}" if reason == "refused" and status else reason] += 1

    def finish(self) -> tuple[str, ...]:
        notes = []
        if self._reasons:
            causes = ", ".join(f"{reason} {count:,}" for reason, count in self._reasons.most_common())
            notes.append(f"requests recorded as no load to plan for: {self._reasons.total():,} ({causes})")
        for who, count in self._cut.most_common():
            notes.append(f"replies broken off by the {who}, planned for as far as they came: {count:,}")
        if self._estimated:
            notes.append(f"requests with token counts that are estimates: {self._estimated:,}")
        if self._in_part:
            notes.append(in_part_note(self._in_part))
        if self._block_bytes:
            tokens = round(self._block_bytes * self._bytes_tokens / self._bytes) if self._bytes else 0
            self._builder.set_block_tokens(max(tokens, 1) if self._bytes else 0)
            if self._bytes:
                notes.append(
                    f"prefix blocks are {self._block_bytes} bytes of text, {max(tokens, 1)} tokens on average here: "
                    "shares are estimates; fwopt record --tokenizer makes them exact"
                )
        return tuple(notes)
