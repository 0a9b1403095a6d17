"""Answers on disk: gzip JSON lines. While a run is under way each line is a gzip member of its own in `NAME.partial`,
so that after a SIGKILL the file reads up to the last whole line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.spec.base import Frozen
from fwopt.spec.evals import EvalComparison, EvalsHeader, Graded
from fwopt.spec.reading import require_version

ANSWERS, AGAINST = ".answers.jsonl.gz", ".against.json"


@dataclass(frozen=True, slots=True)
class Answers:
    """One server's graded answers to one set."""

    path: Path
    header: EvalsHeader
    graded: dict[str, Graded] = field(default_factory=dict)
    """By item."""

    @property
    def complete(self) -> bool:
        return len(self.graded) == self.header.items

    @property
    def errors(self) -> int:
        return sum(found.error is not None for found in self.graded.values())

    @property
    def score(self) -> float:
        return sum(found.score for found in self.graded.values()) / len(self.graded)


class AnswersWriter:
    """Appends to `path.partial`; `finish` writes the whole file in the set's order."""

    def __init__(self, path: Path, header: EvalsHeader, kept: Iterable[Graded] = ()) -> None:
        self.path, self.partial, self.header = path, path.with_name(path.name + ".partial"), header
        self.graded: dict[str, Graded] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.partial.open("wb")
        except OSError as error:
            raise InputError(f"{self.partial}: cannot be written: {error.strerror or error}") from None
        self._append(header)
        for found in kept:
            self.add(found)

    def add(self, found: Graded) -> None:
        self.graded[found.id] = found
        self._append(found)

    def _append(self, line: Frozen) -> None:
        try:
            self._file.write(gzip.compress(_packed(line), 1, mtime=0))
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.partial}: cannot be written: {error.strerror or error}") from None

    def finish(self, order: Iterable[str]) -> Answers:
        self._file.close()
        whole = Answers(self.path, self.header, {name: self.graded[name] for name in order})
        with written_whole(self.path) as path:
            lines = b"".join(map(_packed, (self.header, *whole.graded.values())))
            path.write_bytes(gzip.compress(lines, 6, mtime=0))
        self.partial.unlink()
        return whole

    def abandon(self) -> None:
        """Leave the partial file as it is, readable."""
        self._file.close()


def _packed(line: Frozen) -> bytes:
    return orjson.dumps(line.model_dump(mode="json", exclude_none=True), option=orjson.OPT_APPEND_NEWLINE)


def read_answers(path: Path) -> Answers:
    """A finished run's, or what a stopped one left in its `.partial` file."""
    lines = _lines(path)
    first = next(lines, None)
    if first is None or first.get("kind") != "evals":
        raise InputError(f"{path}: is no answers file; `fwopt evals` writes one")
    require_version(path, first)
    number = 1
    try:
        found = Answers(path, EvalsHeader.model_validate(first))
        for line in lines:
            number += 1
            answer = Graded.model_validate(line)
            found.graded[answer.id] = answer
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{path}:{number}: {where}: {error.errors()[0]['msg']}") from None
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines, as far as the file goes."""
    try:
        data, rest = path.read_bytes(), b""
        while data:
            unpacker = zlib.decompressobj(wbits=31)
            *whole, rest = (rest + unpacker.decompress(data)).split(b"\n")
            yield from map(orjson.loads, whole)
            data = unpacker.unused_data
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (zlib.error, orjson.JSONDecodeError) as error:
        raise InputError(f"{path}: is no gzip of JSON lines: {error}") from None


def unfinished(folder: Path, header: EvalsHeader) -> Answers | None:
    """The newest stopped run whose answers go with this header."""
    partials = sorted(folder.glob(f"*{ANSWERS}.partial"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((found for found in map(read_answers, partials) if found.header.key == header.key), None)


def write_comparison(comparison: EvalComparison, path: Path) -> None:
    with written_whole(path) as beside:
        beside.write_text(comparison.model_dump_json(indent=1) + "\n", encoding="utf-8")
