"""The trace file: append-only, whole after kill -9, on disk within a stated time, rotated by renaming."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fwopt.errors import InputError
from fwopt.record.settings import Rotation

_TAIL_BYTES = 1 << 16
_SAY_AGAIN_S = 30.0


@dataclass(slots=True)
class Tally:
    """What became of the lines."""

    written: int = 0
    lost: int = 0
    """Could not be written."""
    rotated: int = 0


class TraceWriter:
    """A line handed to `write` is with the kernel when the call returns, so killing the process loses nothing that was
    written; `fsync_s` later at the latest it is on the disk."""

    def __init__(
        self, path: Path, header: dict[str, Any], rotation: Rotation, fsync_s: float, say: Callable[[str], None]
    ) -> None:
        self.path, self.tally, self.file = path, Tally(), 0
        """`file` counts the files written to, so that a parent's line is not sought in another one."""
        self._header = orjson.dumps(header) + b"\n"
        self._rotation, self._fsync_s, self._say = rotation, fsync_s, say
        self._fd: int | None = None
        self._size = self._lines = 0
        self._begun_s = 0.0
        self._dirty = asyncio.Event()
        self._said_s = -_SAY_AGAIN_S
        self._failing = False
        self._sealing: set[asyncio.Future[None]] = set()

    def open(self) -> None:
        """Take over what an earlier recording left, torn last line cut off; raises InputError."""
        try:
            self._finish_renames()
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                self._lock(fd)
                self._repair(fd)
                self._size = os.fstat(fd).st_size
                if self._size:
                    self._check_header(fd)
                    self._lines = int(self._size > len(self._header))
                else:
                    self._append(fd, self._header)
                    self._sync_folder()
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        self._fd, self._begun_s = fd, time.monotonic()

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path}: another recorder writes to it; name another --out") from None

    def _repair(self, fd: int) -> None:
        """Cut off what follows the last line feed: a line whose writer was killed."""
        size = os.fstat(fd).st_size
        end = size
        while end > 0:
            start = max(end - _TAIL_BYTES, 0)
            at = os.pread(fd, end - start, start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            os.ftruncate(fd, end)
            self._say(f"{self.path}: cut off a torn last line of {size - end} bytes")

    def _check_header(self, fd: int) -> None:
        first = os.pread(fd, len(self._header), 0)
        if first != self._header:
            raise InputError(
                f"{self.path}: holds something else or a recording made otherwise (first line must be "
                f"{self._header.decode().strip()}); name another --out"
            )

    def write(self, row: dict[str, Any]) -> int | None:
        """Append one line; the number of the file it went to, or None when it was lost."""
        line = orjson.dumps(row) + b"\n"
        try:
            if self._due(len(line)):
                self._rotate()
            if self._fd is None:
                self._begin()
                row.pop("parent_id", None)  # lies in the file before
                line = orjson.dumps(row) + b"\n"
            assert self._fd is not None
            self._append(self._fd, line)
        except OSError as error:
            self._lost(error)
            return None
        self._lines += 1
        self.tally.written += 1
        self._dirty.set()
        if self._failing:
            self._failing = False
            self._say(f"{self.path}: recording again; {self.tally.lost:,} requests were not recorded")
        return self.file

    def _append(self, fd: int, line: bytes) -> None:
        """All of the line or nothing of it."""
        done = os.write(fd, line)
        if done != len(line):
            os.ftruncate(fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += done

    def _lost(self, error: OSError) -> None:
        self.tally.lost += 1
        self._failing = True
        if time.monotonic() - self._said_s >= _SAY_AGAIN_S:
            self._said_s = time.monotonic()
            self._say(
                f"{self.path}: cannot be written: {error.strerror or error}; {self.tally.lost:,} requests not recorded "
                "so far, serving goes on"
            )

    def _due(self, more: int) -> bool:
        if self._fd is None or not self._lines:
            return False
        limit, period = self._rotation.size_bytes, self._rotation.period_s
        return (limit is not None and self._size + more > limit) or (
            period is not None and time.monotonic() - self._begun_s >= period
        )

    def _rotate(self) -> None:
        """Put the file aside; it gets its lasting name once it is on the disk."""
        assert self._fd is not None
        aside, target = self._free_names()
        self.path.rename(aside)
        fd, self._fd = self._fd, None
        self.tally.rotated += 1
        sealing = asyncio.get_running_loop().run_in_executor(None, self._seal, fd, aside, target)
        self._sealing.add(sealing)
        sealing.add_done_callback(self._sealed)

    def _begin(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._size = self._lines = 0
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._append(fd, self._header)
        except OSError:
            os.close(fd)
            self.path.unlink(missing_ok=True)
            raise
        self._fd, self._begun_s = fd, time.monotonic()
        self.file += 1

    def _free_names(self) -> tuple[Path, Path]:
        """(name while it is brought to the disk, name for good): workload.000001.jsonl and so on."""
        pattern = re.compile(re.escape(self.path.stem) + r"\.(\d{6,})" + re.escape(self.path.suffix) + r"(\.closing)?$")
        found = (pattern.match(name.removeprefix(".")) for name in os.listdir(self.path.parent))  # noqa: PTH208
        number = 1 + max((int(match[1]) for match in found if match), default=0)
        target = self.path.with_name(f"{self.path.stem}.{number:06}{self.path.suffix}")
        return target.with_name(f".{target.name}.closing"), target

    def _seal(self, fd: int, aside: Path, target: Path) -> None:
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        aside.rename(target)
        self._sync_folder()

    def _sealed(self, sealing: asyncio.Future[None]) -> None:
        self._sealing.discard(sealing)
        if not sealing.cancelled() and isinstance(error := sealing.exception(), OSError):
            self._say(f"{self.path}: a rotated file was not completed: {error.strerror or error}")

    def _finish_renames(self) -> None:
        """Rotations that a kill interrupted."""
        for aside in self.path.parent.glob(f".{self.path.stem}.*{self.path.suffix}.closing"):
            aside.rename(aside.with_name(aside.name.removeprefix(".").removesuffix(".closing")))

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def keep_on_disk(self) -> None:
        """Runs beside the traffic: fsync once for all lines written meanwhile, and rotation by time without traffic."""
        loop = asyncio.get_running_loop()
        while True:
            period = self._rotation.period_s
            try:
                await asyncio.wait_for(self._dirty.wait(), min(period, 60.0) if period else None)
            except TimeoutError:
                if self._due(0):
                    self._rotate()
                continue
            await asyncio.sleep(self._fsync_s)
            self._dirty.clear()
            if self._fd is not None:
                fd = os.dup(self._fd)
                try:
                    await loop.run_in_executor(None, os.fsync, fd)
                except OSError as error:
                    self._say(
                        f"{self.path}: fsync failed: {error.strerror or error}; lines may not survive a power loss"
                    )
                finally:
                    os.close(fd)

    async def close(self) -> None:
        if self._sealing:
            await asyncio.wait(self._sealing)
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.fsync(fd)
                self._sync_folder()
            except OSError as error:
                self._say(f"{self.path}: fsync failed: {error.strerror or error}")
            os.close(fd)
