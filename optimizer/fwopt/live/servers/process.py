"""One engine as a process: started under a keeper, with its log, and ended whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fwopt.errors import FwoptError, InputError
from fwopt.live.servers import keeper
from fwopt.live.servers.gpu import GpuMemory

_SIGKILL_STATUS = 137
_MARGIN_S = 30.0
"""Past the grace time, for the kernel to take back what a large process held."""
_PRIVATE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Of this interpreter; an engine has one of its own."""
_MARK = "FWOPT_SERVER"
"""Variable whose value all processes of one engine inherit: finds them when their keeper was killed."""


@dataclass(slots=True)
class EngineProcess:
    """A running engine and everything that it started."""

    command: Sequence[str]
    scratch: Path
    env: Mapping[str, str]
    grace_s: float
    log: Path = field(init=False)
    _keeper: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _gpu: GpuMemory = field(init=False)
    _oom_kills: int = field(init=False, default=0)
    _log_start: int = field(init=False, default=0)
    _mark: str = field(init=False, default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.log = self.scratch / "engine.log"
        self._gpu = GpuMemory()

    def start(self) -> None:
        if not sys.platform.startswith("linux"):
            raise InputError(f"engines are started on Linux only, this is {sys.platform}; attach to a running server")
        self._oom_kills = _oom_kills()
        self._gpu.remember()
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                log.write(f"$ {' '.join(self.command)}\n".encode())
                log.flush()
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", keeper.__file__, str(self.grace_s), *self.command],
                    stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=self.scratch,
                    env={**self.env, _MARK: self._mark}, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise InputError(f"{self.scratch}: cannot hold the server's log: {error.strerror or error}") from None

    def ended(self) -> int | None:
        """Exit status as a shell shows it (137: SIGKILL); None while it runs."""
        return self._keeper.poll() if self._keeper else 0

    def pids(self) -> list[int]:
        """The engine's processes, children of children included."""
        return keeper.descendants(self._keeper.pid) if self._keeper and self._keeper.poll() is None else []

    def out_of_memory(self) -> bool:
        """Whether the kernel, short of memory, killed a process since this one started, and this one was killed."""
        return self.ended() == _SIGKILL_STATUS and _oom_kills() > self._oom_kills

    def output(self) -> str:
        """What this start wrote to the log, without the command."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", "replace").partition("\n")[2]

    def stop(self) -> None:
        """End every process and wait until GPU memory is free; FwoptError when the kernel keeps one alive."""
        running, self._keeper = self._keeper, None
        if running is None:
            return
        if running.stdin:
            running.stdin.close()
        try:
            if running.wait(self.grace_s + _MARGIN_S) < 0:  # the keeper was killed: it ended nothing
                for pid in _marked(self._mark):
                    keeper.send(pid, signal.SIGKILL)
        except subprocess.TimeoutExpired:
            left = keeper.descendants(running.pid)
            self._keeper = running
            raise FwoptError(f"processes {left} of the server cannot be ended; look at them before going on") from None
        self._gpu.wait_until_free()


def environment(extra: Mapping[str, str], without: str = "") -> dict[str, str]:
    """This process's environment for an engine: nothing of this interpreter, no names that begin with `without`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in _PRIVATE and not (without and key.startswith(without))
    }
    return kept | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | dict(extra)


def free_port() -> int:
    """A port of the loopback that nobody listens on now.

    Between this and the engine's own bind another process may take it: `StartedServer` then tries another.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """Whether somebody listens on that port of the loopback."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _marked(mark: str) -> list[int]:
    """Processes that inherited this mark."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found


def _oom_kills() -> int:
    """How often this machine's kernel killed a process for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
