"""Replays on disk: gzip JSON lines, a header, a line for each request as it ends, an end.

While a run is under way the file is called `NAME.partial`. Every second's lines end in a flushed block, so that after a
SIGKILL the file reads up to the last whole line.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from fwopt.errors import InputError
from fwopt.live.lines import ReplayWanted
from fwopt.live.problems import Lag
from fwopt.live.result import Replay, ReplayEnd, ReplayHeader
from fwopt.live.rows import Rows
from fwopt.spec.reading import require_version

FLUSH_S = 1.0
_LEVEL = 1


class ReplayWriter:
    """Appends lines to `path.partial`; `finish` gives the file its name."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._packer = zlib.compressobj(_LEVEL, wbits=31)
        self._lines: list[bytes] = []
        self._flushed_s = monotonic()
        try:
            self._file = self.partial.open("wb")
        except OSError as error:
            raise InputError(f"{self.partial}: cannot be written: {error.strerror or error}") from None

    def add(self, line: dict[str, Any]) -> None:
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def beat(self) -> None:
        """Pack what has come; flush it every second."""
        if self._lines:
            self._write(self._packer.compress(b"".join(self._lines)))
            self._lines.clear()
        if monotonic() - self._flushed_s >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Everything so far is readable in the file from here on."""
        self._write(self._packer.compress(b"".join(self._lines)) + self._packer.flush(zlib.Z_SYNC_FLUSH))
        self._lines.clear()
        self._flushed_s = monotonic()

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # closing tries the same bytes again
                self._file.close()
            raise InputError(f"{self.partial}: cannot be written: {error.strerror or error}") from None

    def finish(self, end: ReplayEnd) -> None:
        self.add(end.model_dump(mode="json"))
        self._write(self._packer.compress(b"".join(self._lines)) + self._packer.flush(zlib.Z_FINISH))
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self.partial.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def abandon(self) -> None:
        """Leave the partial file as it is, readable."""
        if not self._file.closed:
            self.flush()
            self._file.close()


def wanted_line(prompt_tokens: Any, output_tokens: Any) -> dict[str, Any]:
    wanted = ReplayWanted(prompt_tokens=prompt_tokens.tolist(), output_tokens=output_tokens.tolist())
    return wanted.model_dump(mode="json")


def save(replay: Replay, path: Path) -> None:
    writer = ReplayWriter(path)
    writer.add(replay.header.model_dump(mode="json"))
    writer.add(wanted_line(replay.prompt_tokens, replay.output_tokens))
    rows = replay.rows
    for i in replay.offered.tolist():
        if rows.token_events[i] > 0 and rows.chunk_at[i] < 0:
            writer.abandon()
            writer.partial.unlink()
            raise InputError(f"{path}: chunk times were written to {replay.header.options.stream_to}; copy that file")
        writer.add(rows.row(i, rows.chunks(i), rows.running.get(i, array("I"))))
        if len(writer._lines) >= 1000:
            writer.beat()
    writer.finish(replay.end)


def load(path: Path) -> Replay:
    lines = _lines(path)
    header = _header(path, next(lines, None))
    wanted = next(lines, None)
    if wanted is None or wanted.get("kind") != "wanted":
        raise InputError(f"{path}: its second line must hold the lengths that were wanted; the file is cut")
    rows, end = Rows.empty(header.requests), None
    for number, line in enumerate(lines, start=3):
        try:
            if line.get("kind") == "end":
                end = ReplayEnd.model_validate(line)
            else:
                rows.take(line)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: is no line of a replay: {error}") from None
    if end is None:
        reached = rows.end_s[np.isfinite(rows.end_s)]
        last = float(reached.max()) if len(reached) else 0.0
        end = ReplayEnd(complete=False, duration_s=last, clock_lag=Lag.of(np.zeros(0)))
    prompts, outputs = (np.asarray(wanted[k], dtype=np.int32) for k in ("prompt_tokens", "output_tokens"))
    return Replay(header, prompts, outputs, rows, end)


def _header(path: Path, line: dict[str, Any] | None) -> ReplayHeader:
    if line is None or line.get("kind") != "replay":
        raise InputError(f"{path}: is no replay; `fwopt replay --out FILE` writes one")
    require_version(path, line)
    try:
        return ReplayHeader.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: header: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines, as far as the file goes."""
    unpacker = zlib.decompressobj(wbits=31)
    rest = b""
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                *whole, rest = (rest + unpacker.decompress(block)).split(b"\n")
                for line in whole:
                    yield orjson.loads(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (zlib.error, orjson.JSONDecodeError) as error:
        raise InputError(f"{path}: is no gzip of JSON lines: {error}") from None
