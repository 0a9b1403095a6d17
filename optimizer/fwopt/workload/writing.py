"""fwopt's own format, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from fwopt.atomic import refuse_special, written_whole
from fwopt.errors import InputError
from fwopt.spec.base import SCHEMA_VERSION
from fwopt.workload.columns import Workload

_ROWS = 10_000


def write_own(workload: Workload, path: Path, *, force: bool = False) -> None:
    """Write JSON lines, compressed when the name ends in .gz or .zst; equal workloads give equal bytes.

    The file appears under its name only when it is complete.
    """
    check_target(path, force=force)
    with written_whole(path) as beside, packed(beside, path.suffix) as stream:
        for chunk in _lines(workload):
            stream.write(chunk)


def check_target(path: Path, *, force: bool) -> None:
    """Refuse early, before a long read, what cannot be written."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file, for example {path / 'workload.jsonl.gz'}")
    refuse_special(path)
    if path.exists() and not force:
        raise InputError(f"{path}: exists; --force overwrites it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")


@contextmanager
def packed(path: Path, suffix: str) -> Iterator[IO[bytes] | Any]:
    """A new file to write bytes to, compressed as the suffix says; equal content gives equal bytes."""
    with path.open("xb") as raw:
        if suffix == ".gz":
            import gzip

            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
                yield stream
        elif suffix == ".zst":
            import zstandard

            with zstandard.ZstdCompressor(level=9).stream_writer(raw, closefd=False) as stream:
                yield stream
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())


def _lines(workload: Workload) -> Iterator[bytes]:
    header: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "name": workload.name}
    if workload.block_tokens:
        header["block_tokens"] = workload.block_tokens
    yield orjson.dumps(header) + b"\n"
    parents = set(workload.parent[workload.parent >= 0].tolist())
    for start in range(0, len(workload), _ROWS):
        rows = _rows(workload, start, min(start + _ROWS, len(workload)), parents)
        yield b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _rows(w: Workload, start: int, stop: int, parents: set[int]) -> Iterator[dict[str, Any]]:
    part = slice(start, stop)
    base = int(w.block_offsets[start])
    blocks = w.block_ids[base : int(w.block_offsets[stop])].tolist()
    ends = (w.block_offsets[start : stop + 1] - base).tolist()
    columns = (w.arrival_s, w.prompt_tokens, w.output_tokens, w.max_tokens, w.session, w.parent, w.model, w.adapter)
    for i, (arrival, prompt, output, limit, session, parent, model, adapter, tools) in enumerate(
        zip(*(column[part].tolist() for column in columns), w.tools[part].tolist(), strict=True)
    ):
        row = {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output}
        if limit:
            row["max_tokens"] = limit
        if ends[i] < ends[i + 1]:
            row["prefix_blocks"] = blocks[ends[i] : ends[i + 1]]
        if start + i in parents:
            row["id"] = start + i
        if session >= 0:
            row["session_id"] = session
        if parent >= 0:
            row["parent_id"] = parent
        if model >= 0:
            row["model"] = w.models[model]
        if adapter >= 0:
            row["adapter"] = w.adapters[adapter]
        if tools:
            row["tools"] = tools
        yield row
