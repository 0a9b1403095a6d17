"""One line a step: when, how long, and what was computed, in the simulator's terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from fwopt.errors import InputError
from fwopt.spec.base import SCHEMA_VERSION
from fwopt.spec.reading import require_version
from fwopt.spec.step import StepShape

KIND = "fwopt-steps"
_FLUSH_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class StepRecord:
    start_s: float
    """Since the engine started (the first line says when that was)."""
    schedule_s: float
    prepare_s: float
    """Flattening the step into arrays, on the host."""
    forward_s: float
    """Host time of the forward pass and the logits; on a CPU all of their time, on a GPU that of launching them."""
    sample_s: float
    """Choosing tokens; on a GPU this waits for the device."""
    output_s: float
    """Bookkeeping after the step and handing tokens out."""
    device_s: float | None
    """Between the first and the last kernel of forward pass and logits; None on a CPU, where it is `forward_s`."""
    shape: StepShape
    captured: int | None
    """Size of the CUDA graph that was replayed; None: launched one by one."""
    running: int
    waiting: int
    blocks_used: int
    preemptions: int
    """In this step."""

    @property
    def step_s(self) -> float:
        return self.schedule_s + self.prepare_s + self.forward_s + self.sample_s + self.output_s


class RecordWriter:
    """Appends JSON lines, buffered; the first line describes the engine."""

    def __init__(self, file: Path, header: dict[str, Any]) -> None:
        try:
            self._file = file.open("wb")
        except OSError as error:
            raise InputError(f"--records {file}: must be a writable file: {error.strerror}") from None
        self._lines: list[bytes] = [orjson.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION, **header})]
        self._bytes = 0
        self.flush()

    def add(self, record: StepRecord) -> None:
        line = orjson.dumps(record)
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered; called when the engine has nothing else to do."""
        if self._lines:
            self._file.write(b"\n".join(self._lines) + b"\n")
            self._file.flush()
            self._lines.clear()
            self._bytes = 0

    def close(self) -> None:
        self.flush()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as lines:
        return _header(file, lines.readline())


def read_records(file: Path) -> Iterator[StepRecord]:
    """Records of a file; a last line cut short by a crash is left out."""
    with file.open("rb") as lines:
        _header(file, lines.readline())
        for number, line in enumerate(lines, start=2):
            if not line.endswith(b"\n"):
                return
            try:
                values = orjson.loads(line)
                shape = values.pop("shape")
                chunks = tuple((start, length) for start, length in shape.pop("chunks"))
                yield StepRecord(shape=StepShape(chunks=chunks, **shape), **values)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise InputError(f"{file}:{number}: must be a step record: {error}") from None


def _header(file: Path, line: bytes) -> dict[str, Any]:
    try:
        values = orjson.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise InputError(f"{file}: must be a file that `fwopt serve --records` wrote")
    require_version(file, values)
    return values
