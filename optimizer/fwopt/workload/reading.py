"""Reading a trace: recognise its format, stream its lines into a builder, account for every line left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fwopt.errors import InputError, TraceError
from fwopt.workload.columns import Workload
from fwopt.workload.formats.base import Options, Rows
from fwopt.workload.registry import detect, load
from fwopt.workload.source import LINE_RULE, Source, TooLong

KEPT_ERRORS = 20


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A workload and what became of the file's lines."""

    workload: Workload
    format: str
    lines: int
    """Lines that are not blank, a header included."""
    skipped: tuple[TraceError, ...]
    """The first of what was left out."""
    skipped_count: int
    """Bad lines left out; bad spans where a line holds many requests."""
    skipped_by_rule: dict[str, int]
    """What was left out, by `field: rule`, most frequent first."""
    notes: tuple[str, ...]
    """What a user must know about how the file was read."""


@dataclass(slots=True)
class _Skipped:
    errors: list[TraceError] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)

    def add(self, error: TraceError) -> None:
        self.rules[f"{error.field}: {_without_numbers(error.rule)}"] += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append(error)


def read(path: Path, *, format: str | None = None, skip_bad: bool = False, model: Path | None = None) -> ReadResult:
    """Read a whole trace. The first bad line is an error, unless `skip_bad`: then bad lines are left out and counted.

    `model` is a folder with `tokenizer.json`, for logs whose lines lack token counts.
    """
    source = Source(path)
    name = format or detect(source.head, source.file)
    form = load(name)
    if model is not None and not form.counts_tokens:
        raise InputError(
            f"--model {model}: counts the tokens of OpenAI logs, and {path} is of format {name}; leave it out"
        )
    rows = form.rows(source.file, source.head, Options(model))
    skipped = _Skipped()
    rows.builder.skip = skipped.add if skip_bad else None
    lines, torn = _consume(source, rows)
    count = skipped.rules.total()
    if not len(rows.builder):
        value = f"{lines} lines, none a request"
        if count:
            value = f"{count} bad lines and no good one, first: {skipped.errors[0]}"
        raise TraceError(source.file, None, "trace", "must hold at least one request", value)
    notes = torn + rows.finish()
    workload = rows.builder.build(rows.name or _stem(path), name)
    return ReadResult(workload, name, lines, tuple(skipped.errors), count, dict(skipped.rules.most_common()), notes)


def _consume(source: Source, rows: Rows) -> tuple[int, tuple[str, ...]]:
    """(lines, a note when the last one was torn off)."""
    builder, row, lines, started = rows.builder, rows.row, 0, False
    for number, line in source.lines():
        lines += 1
        builder.line = number
        try:
            if isinstance(line, TooLong):
                builder.bad("line", LINE_RULE, "a longer one")
            first, started = not started, True
            if not (first and _header(rows, line)):
                row(line)
        except _HeaderError as error:
            raise error.cause from None
        except TraceError as error:
            if rows.torn_end_is_known and source.unended(number):
                return lines - 1, (f"line {number} was torn off when its writer was killed: left out",)
            if builder.skip is None:
                raise
            builder.skip(error)
    return lines, ()


class _HeaderError(Exception):
    """A bad header spoils the whole file, whatever `skip_bad` says."""

    def __init__(self, cause: TraceError) -> None:
        self.cause = cause


def _header(rows: Rows, line: bytes) -> bool:
    try:
        return rows.header(line)
    except TraceError as error:
        raise _HeaderError(error) from None


def _without_numbers(rule: str) -> str:
    """The rule without this line's own numbers, so that equal causes count together."""
    return rule.partition(" (")[0].partition("; ")[0]


def _stem(path: Path) -> str:
    name = path.name
    for end in (".gz", ".zst", ".jsonl", ".ndjson", ".json", ".csv"):
        name = name.removesuffix(end)
    return name or path.name
