"""fwopt's own JSON lines: an optional header line, then one request a line."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import Field

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.workload.builder import MAX_NAMES, MAX_TOKENS, Builder
from fwopt.workload.formats.base import JsonRows, Options, TraceFormat
from fwopt.workload.formats.recorded import OBSERVED, Observed, RecordedRows
from fwopt.workload.source import Head

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS, strict=True)]
Id = Annotated[str, Field(min_length=1)] | Annotated[int, Field(strict=True)]
BlockHash = Annotated[int, Field(ge=0, lt=1 << 64, strict=True)] | Annotated[str, Field(pattern="^[0-9a-fA-F]{1,128}$")]
Name = Annotated[str, Field(min_length=1)]


class WorkloadHeader(Frozen):
    """Optional first line of a workload file."""

    schema_version: Literal[1]
    """Version of this format."""
    name: Name | None = None
    """What the trace is called; the file's name when absent."""
    block_tokens: Tokens | None = None
    """Prompt tokens covered by one entry of `prefix_blocks`; needed when any line has that field."""
    block_bytes: Tokens | None = None
    """In place of `block_tokens`: bytes of prompt text covered by one entry. The reader works out the tokens from the
    lines' `prompt_bytes` and `prompt_tokens`, so shares of the prompt are estimates."""
    order: Literal["arrival", "completion"] | None = None
    """`completion`: a recording, written line by line as replies ended. The reader sorts it, and a last line that was
    torn off is reported and left out."""


class WorkloadLine(Observed):
    """One request. Lines are in order of arrival, unless the header says otherwise; unknown fields are errors."""

    arrival_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds on any clock; only differences count. Must not decrease from line to line, recordings apart."""
    prompt_tokens: Tokens
    """Tokens of the prompt, chat template included."""
    output_tokens: Tokens
    """Tokens the request really produced. The scheduler does not get to see it."""
    max_tokens: Tokens | None = None
    """The limit the client sent; at least `output_tokens`."""
    prefix_blocks: list[BlockHash] | None = None
    """Hashes of the prompt's leading blocks of `block_tokens` tokens, in order, the last one possibly partial.
    Two requests of one model and adapter share a prefix as far as their hashes are equal from the start."""
    id: Id | None = None
    """Unique in the trace; needed only where a later line's `parent_id` names it."""
    session_id: Id | None = None
    """Groups the turns of a conversation or agent run."""
    parent_id: Id | None = None
    """`id` of the earlier request that this one continues."""
    model: Name | None = None
    """Model the request asked for; several models in one trace are legal."""
    adapter: Name | None = None
    """LoRA adapter the request asked for."""
    tools: Annotated[int, Field(ge=0, le=MAX_NAMES, strict=True)] | None = None
    """Number of tools offered to the model."""


_KNOWN = frozenset(WorkloadLine.model_fields)
_NEEDED = frozenset({"arrival_s", "prompt_tokens", "output_tokens"})


def _accepts(head: Head) -> bool:
    return any("schema_version" in row or len(_NEEDED & row.keys()) >= 2 for row in head.objects)


class OwnRows(JsonRows):
    """Checks are the builder's, not pydantic's: a million lines take seconds."""

    known = _KNOWN

    def __init__(self, file: str, head: Head, options: Options) -> None:
        super().__init__(Builder(file, {}))
        self._recorded = RecordedRows(self.builder)
        self._header: dict[str, object] = {}

    def header(self, line: bytes) -> bool:
        if b'"schema_version"' not in line:
            return False
        row, bad = self.parse(line), self.builder.bad
        self.unread.clear()
        for key in row.keys() - WorkloadHeader.model_fields.keys():
            bad(key, f"is no header field; known: {', '.join(WorkloadHeader.model_fields)}", row[key])
        if type(row.get("schema_version")) is not int or row["schema_version"] != SCHEMA_VERSION:
            bad(
                "schema_version", f"must be {SCHEMA_VERSION}, which is what this fwopt reads", row.get("schema_version")
            )
        name, tokens = row.get("name"), row.get("block_tokens")
        if name is not None and (type(name) is not str or not name):
            bad("name", "must be a non-empty string", name)
        if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= MAX_TOKENS):
            bad("block_tokens", f"must be a whole number from 1 to {MAX_TOKENS}", tokens)
        self.name, self.builder.block_tokens = name, tokens or 0
        self.torn_end_is_known, self._header = self._recorded.header(row), row
        return True

    def row(self, line: bytes) -> None:
        row = self.parse(line)
        if "schema_version" in row:
            self.unread.clear()
            return self._again(row)
        if "left_out" in row:
            self.unread.clear()
            return self._recorded.left_out(row)
        if self.unread:
            self._unknown(row)
        if not OBSERVED.isdisjoint(row):
            self._recorded.check(row)
        get = row.get
        self.builder.add(
            get("arrival_s"),
            get("prompt_tokens"),
            get("output_tokens"),
            max_tokens=get("max_tokens"),
            blocks=self._recorded.prefix(row),
            session=get("session_id"),
            request=get("id"),
            parent=get("parent_id"),
            model=get("model"),
            adapter=get("adapter"),
            tools=get("tools"),
        )
        self._recorded.count(row)
        return None

    def finish(self) -> tuple[str, ...]:
        return self._recorded.finish()

    def _again(self, row: dict[str, object]) -> None:
        """The files of a rotated recording, one behind the other, are a recording: their headers are equal."""
        if not self.torn_end_is_known:
            self.builder.bad("schema_version", "stands in the first line only, recordings apart", row["schema_version"])
        if row != self._header:
            self.builder.bad("schema_version", "begins a recording of another kind; read it by itself", row)

    def _unknown(self, row: dict[str, object]) -> None:
        field = sorted(self.unread)[0]
        self.unread.clear()
        near = difflib.get_close_matches(field, _KNOWN, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(WorkloadLine.model_fields)}"
        self.builder.bad(field, f"is no field of a request{hint}", row[field])


FORMAT = TraceFormat("fwopt's own JSONL (arrival_s, prompt_tokens, output_tokens, …)", _accepts, OwnRows)
