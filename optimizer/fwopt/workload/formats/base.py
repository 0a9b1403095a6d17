"""What a trace format is: how it is recognised, and how one line becomes a request."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from fwopt.workload.builder import Builder
from fwopt.workload.source import Head


@dataclass(frozen=True, slots=True)
class Options:
    """What the user said beside the file's name."""

    model: Path | None = None
    """Folder with `tokenizer.json`, for logs whose lines lack token counts."""


class Rows(Protocol):
    """Reads the lines of one file into a builder; raises `TraceError` for a bad one."""

    builder: Builder
    name: str | None
    """What the trace calls itself, when it does."""
    torn_end_is_known: bool
    """The file is written line by line, so an end in the middle of a line is a writer that was killed, no damage."""

    def header(self, line: bytes) -> bool:
        """Looks at the first line; True when it was no request."""

    def row(self, line: bytes) -> None: ...

    def finish(self) -> tuple[str, ...]:
        """After the last line: what a user must know about how this file was read."""


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One entry of the registry."""

    title: str
    """Shown in lists: what it is and the fields that mark it."""
    accepts: Callable[[Head], bool]
    """Whether a file's first lines are of this format; a file that two formats accept needs --format."""
    rows: Callable[[str, Head, Options], Rows]
    """Called with the file's name, its head and the user's options."""
    counts_tokens: bool = False
    """Whether `Options.model` has a use."""


class JsonRows:
    """Common part of the JSON-lines formats: parse a line, report what is wrong with it, list fields not read."""

    known: frozenset[str] = frozenset()

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.name: str | None = None
        self.torn_end_is_known = False
        self.unread: set[str] = set()

    def header(self, line: bytes) -> bool:
        return False

    def parse(self, line: bytes) -> dict[str, Any]:
        """The line's JSON object."""
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            self._not_json(line, error)
        if type(row) is not dict:
            self.builder.bad("line", "must be one JSON object", type(row).__name__)
        if not self.known.issuperset(row):
            self.unread.update(row.keys() - self.known)
        return row

    def _not_json(self, line: bytes, error: orjson.JSONDecodeError) -> None:
        """Name the cause without quoting the line, which may hold a prompt."""
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            self.builder.bad(
                "encoding", f"must be UTF-8 (byte {wrong.start} of the line is not)", line[wrong.start :][:4]
            )
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            for key, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    self.builder.bad(key, "must be a finite number", value)
        self.builder.bad("line", "must be one JSON object", str(error))

    def finish(self) -> tuple[str, ...]:
        return unread_note("fields", self.unread)


class CsvRows:
    """Common part of the CSV formats: columns by name, in any order, beside others that are listed as not read."""

    def __init__(self, builder: Builder, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        self.builder = builder
        self.name: str | None = None
        self.torn_end_is_known = False
        self._required, self._wanted = required, (*required, *optional)
        self.at: dict[str, int] = {}
        self._width = 0
        self.unread: set[str] = set()

    def header(self, line: bytes) -> bool:
        names = [name.strip() for name in self.cells(line)]
        for name in self._required:
            if name not in names:
                self.builder.bad("header", f"must have a column '{name}'", ",".join(names))
        for name in self._wanted:
            if names.count(name) > 1:
                self.builder.bad("header", f"must have one column '{name}'", ",".join(names))
        self.at = {name: names.index(name) for name in self._wanted if name in names}
        self._width = len(names)
        self.unread = set(names) - set(self._wanted)
        return True

    def cells(self, line: bytes) -> list[str]:
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError as wrong:
            self.builder.bad(
                "encoding", f"must be UTF-8 (byte {wrong.start} of the line is not)", line[wrong.start :][:4]
            )
        if '"' in text:
            import csv

            try:
                cells = next(csv.reader([text], strict=True))
            except csv.Error as error:
                self.builder.bad("line", "must be CSV", str(error))
        else:
            cells = text.split(",")
        if self._width and len(cells) != self._width:
            self.builder.bad("line", f"must have {self._width} columns", f"{len(cells)} columns")
        return cells

    def whole(self, field: str, cell: str) -> int:
        """A token count; `160.0` is one, `160.5`, `1_000` and `nan` are not."""
        number = cell.strip()
        if not (number.isascii() and number.isdigit()):
            head, _, tail = number.partition(".")
            if not (head.isascii() and head.isdigit() and not tail.strip("0")):
                self.builder.bad(field, "must be a whole number from 1", cell)
            number = head
        return int(number[:20])

    def seconds(self, field: str, cell: str) -> float:
        try:
            value = math.nan if "_" in cell else float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.builder.bad(field, "must be a finite number of seconds", cell)
        return value

    def finish(self) -> tuple[str, ...]:
        return unread_note("columns", self.unread)


_TEMPLATE_TOKENS = 256
"""More than a chat template adds to a prompt."""


def is_in_part(prompt_tokens: int, text_bytes: int) -> bool:
    """Whether a prompt has more tokens than its text has bytes: the text was redacted or cut, or is beside images. What
    there is of it says little of the prefix, and nothing of how many tokens a byte is."""
    return prompt_tokens > text_bytes + _TEMPLATE_TOKENS


def in_part_note(requests: int) -> str:
    return (
        f"requests with more prompt tokens than bytes of text (redacted, cut, images): {requests:,}; "
        "their prefixes are not known"
    )


def unread_note(what: str, names: set[str]) -> tuple[str, ...]:
    shown = ", ".join(sorted(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (f"{what} not read: {shown}",) if names else ()
