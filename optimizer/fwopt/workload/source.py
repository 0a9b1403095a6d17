"""Lines of a trace file, plain, gzip or zstd, in constant memory; a cut or foreign file is one clear error."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fwopt.errors import InputError, TraceError

MAX_LINE_BYTES = 8 * 1024 * 1024
"""Longest line accepted: over five times a million-token prompt as 16-token block hashes."""
LINE_RULE = f"must be at most {MAX_LINE_BYTES} bytes"
_HEAD_LINES = 32
_HEAD_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_FEED_BYTES = 1 << 14
"""Compressed bytes decoded at once: small, so that a decompression bomb meets the line limit before memory runs out."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a file, from which its format is recognised."""

    first: bytes
    """First line that is not blank."""
    columns: frozenset[str]
    """Names on the first line when it reads as a CSV header, else empty."""
    objects: tuple[dict[str, Any], ...]
    """Those of the first lines that are JSON objects."""


class TooLong:
    """Stands in for a line over `MAX_LINE_BYTES`, whose text was not kept."""


@dataclass(slots=True)
class _End:
    """What is known of a file's end while its lines are split."""

    lines: int = 0
    unended: bool = False
    """The last line was reached and no line feed closes it."""


class Source:
    """One pass over a file's lines, with the first few looked at in advance."""

    def __init__(self, path: Path) -> None:
        self.file = str(path)
        if not path.exists():
            raise InputError(f"{path}: no such trace; name a JSONL or CSV file, plain, .gz or .zst")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name one trace file")
        self._end = _End()
        self._lines = _split(_checked_text(_decoded(path), self.file), self._end)
        self._first: list[bytes | TooLong] = []
        size = 0
        for line in self._lines:
            self._first.append(line)
            size += 0 if isinstance(line, TooLong) else len(line)
            if len(self._first) >= _HEAD_LINES or size >= _HEAD_BYTES:
                break
        if self._first and not any(isinstance(line, bytes) for line in self._first):
            raise TraceError(self.file, 1, "line", LINE_RULE, "a longer one")
        self.head = _head([line for line in self._first if isinstance(line, bytes)])

    def unended(self, number: int) -> bool:
        """Whether that line, already read, is the last one and no line feed closes it."""
        return self._end.unended and number == self._end.lines

    def lines(self) -> Iterator[tuple[int, bytes | TooLong]]:
        """(line number from 1, line without its end), blank lines left out but counted."""
        for number, line in enumerate(chain(self._first, self._lines), 1):
            if isinstance(line, TooLong) or line.strip():
                yield number, line


def _decoded(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed by its magic number, not by its name."""
    try:
        with path.open("rb") as stream:
            first = stream.read(_READ_BYTES)
            blocks = chain([first], iter(lambda: stream.read(_READ_BYTES), b""))
            if first.startswith((_GZIP, _ZSTD)):
                yield from _decompressed(blocks, "gzip" if first.startswith(_GZIP) else "zstd", str(path))
            else:
                yield from blocks
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decompressed(blocks: Iterator[bytes], kind: str, file: str) -> Iterator[bytes]:
    """Several members or frames in one file are read one after another, as `gzip` and `zstd` do."""
    import zstandard

    def fresh() -> Any:
        return zlib.decompressobj(31) if kind == "gzip" else zstandard.ZstdDecompressor().decompressobj()

    decoder, started = fresh(), False
    try:
        for block in blocks:
            for at in range(0, len(block), _FEED_BYTES):
                data = block[at : at + _FEED_BYTES]
                while data:
                    started = True
                    yield decoder.decompress(data)
                    data = decoder.unused_data if decoder.eof else b""
                    if decoder.eof:
                        decoder, started = fresh(), False
                        data = data.lstrip(b"\0") if kind == "gzip" else data
    except (zlib.error, zstandard.ZstdError) as error:
        raise TraceError(file, None, "file", f"must be intact {kind}; copy it again", str(error)) from None
    if started:
        rule = f"must be a whole {kind} file; it is cut off, copy it again"
        raise TraceError(file, None, "file", rule, "end of file inside compressed data")


def _checked_text(blocks: Iterator[bytes], file: str) -> Iterator[bytes]:
    """Refuse what is no UTF-8 text at all; a byte-order mark is dropped."""
    first = next((block for block in blocks if block), b"")
    if first.startswith(_UTF16):
        raise TraceError(file, 1, "encoding", "must be UTF-8; convert with iconv", "UTF-16")
    if b"\0" in first[:4096] or first.startswith(b"PAR1"):
        raise TraceError(file, None, "file", "must be text: JSONL or CSV, plain, gzip or zstd", first[:8])
    yield first.removeprefix(_UTF8_MARK)
    yield from blocks


def _split(blocks: Iterator[bytes], end: _End) -> Iterator[bytes | TooLong]:
    """Lines, over a carry; an over-long line is thrown away as it streams past."""
    with closing(blocks):  # type: ignore[type-var]
        parts: list[bytes] = []
        held = 0
        for block in blocks:
            *lines, rest = block.split(b"\n")
            end.lines += len(lines)
            for line in lines:
                if parts or held:
                    held += len(line)
                    yield TooLong() if held > MAX_LINE_BYTES else b"".join([*parts, line])
                    parts, held = [], 0
                else:
                    yield line if len(line) <= MAX_LINE_BYTES else TooLong()
            if rest:
                held += len(rest)
                parts.append(rest)
                if held > MAX_LINE_BYTES:
                    parts = []
        if held:
            end.lines, end.unended = end.lines + 1, True
            yield TooLong() if held > MAX_LINE_BYTES else b"".join(parts)


def _head(lines: list[bytes]) -> Head:
    filled = [line for line in lines if line.strip()]
    objects = []
    for line in filled:
        if line.lstrip().startswith(b"{"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                objects.append(value)
    first = filled[0] if filled else b""
    columns: frozenset[str] = frozenset()
    if b"," in first and not first.lstrip().startswith((b"{", b"[")):
        columns = frozenset(name.strip().strip('"') for name in first.decode("utf-8", "replace").split(","))
    return Head(first, columns, tuple(objects))
