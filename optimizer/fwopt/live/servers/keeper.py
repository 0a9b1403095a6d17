"""Runs one engine and outlives fwopt just long enough to end it: no process of the engine is left, whatever happens.

    python -I -S keeper.py GRACE_S COMMAND...

fwopt holds the write end of this process's standard input. When it closes or when fwopt is gone, killed with -9
included, the engine gets SIGTERM, and everything that still lives after GRACE_S seconds SIGKILL. The
keeper is a child subreaper: descendants that lose their parent, or that made a session of their own, become its own
children. It leaves only when it has none, so a keeper that has ended proves that the engine has. Exit status: the
engine's, as a shell shows it. Standard library only; Linux.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEFTOVERS_S = 2.0
"""Once the engine's own process has ended, its children get this long to follow."""


def descendants(root: int) -> list[int]:
    """Every living process below `root`, ended ones that nobody has waited for included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            parent = _parent(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # it ended meanwhile
        return None


def main(grace_s: float, command: list[str]) -> int:
    """Run `command` until it ends or standard input closes; returns its exit status."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.close(0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    owner = os.getppid()
    engine = _start(libc, command)
    status = None
    while status is None and not _closed(0, wake_read) and os.getppid() == owner:
        status = _reap().get(engine)
    ended = _end(engine, status, grace_s)
    return os.waitstatus_to_exitcode(ended) if ended >= 0 else 0


def _start(libc: ctypes.CDLL, command: list[str]) -> int:
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(127)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # when memory runs out, the engine is what the kernel should end, not the rest of the machine
        Path("/proc/self/oom_score_adj").write_text("1000")
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"error: {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _closed(lifeline: int, wake: int) -> bool:
    """Wait until a child ended or the lifeline closed; whether it was the lifeline."""
    try:
        ready, _, _ = select.select([lifeline, wake], [], [], 1.0)
        if wake in ready:
            os.read(wake, 512)
        return lifeline in ready and not os.read(lifeline, 512)
    except OSError:  # closed by a signal handler
        return True


def _reap() -> dict[int, int]:
    """Wait status of each child that has ended."""
    ended: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return ended
            ended[pid] = status
    except ChildProcessError:
        return ended


def _end(engine: int, status: int | None, grace_s: float) -> int:
    """SIGTERM, wait, SIGKILL, until there is no descendant; returns the engine's wait status."""
    me = os.getpid()
    deadline = time.monotonic() + (LEFTOVERS_S if status is not None else grace_s)
    if status is None:
        send(engine, signal.SIGTERM)
    else:
        for pid in descendants(me):
            send(pid, signal.SIGTERM)
    while left := descendants(me):
        found = _reap().get(engine)
        if found is not None and status is None:
            status, deadline = found, min(deadline, time.monotonic() + LEFTOVERS_S)
        if time.monotonic() > deadline:
            for pid in left:
                send(pid, signal.SIGKILL)
        time.sleep(0.02)
    return status if status is not None else 0


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    code = main(float(sys.argv[1]), sys.argv[2:])
    if code < 0:  # as a shell: 128 + signal
        code = 128 - code
    sys.exit(code)
