"""No process is left, whatever the engine does and however fwopt ends. Shell scripts stand in for bad engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fwopt.live.servers.keeper import descendants
from fwopt.live.servers.process import EngineProcess, environment, free_port, is_taken

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="engines are started on Linux only")

UNRULY = """
trap '' TERM
setsid sleep 1001 &
( setsid setsid sleep 1002 & ) &
( trap '' TERM; while true; do sleep 0.1; done ) &
echo ready
while true; do sleep 0.1; done
"""
"""Ignores SIGTERM, and starts children in sessions of their own, orphans among them."""


def _wait_for(condition, what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def _gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture
def run(tmp_path):
    """`run(*command)`: started, and ended with the test."""
    with ExitStack() as stack:

        def start(*command: str, env: dict[str, str] | None = None) -> EngineProcess:
            process = EngineProcess(command, tmp_path, environment({}) if env is None else env, 0.2)
            stack.callback(process.stop)
            process.start()
            return process

        yield start


def test_everything_an_engine_started_ends_with_it(run):
    process = run("bash", "-c", UNRULY)
    _wait_for(lambda: "ready" in process.output() and len(process.pids()) >= 5, "the engine is up")
    pids = process.pids()
    process.stop()
    assert _gone(pids)
    process.stop()


def test_a_stopped_process_ends_too(run):
    process = run("bash", "-c", "sleep 1003 & echo ready; wait")
    _wait_for(lambda: len(process.pids()) == 2, "the engine is up")
    pids = process.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    process.stop()
    assert _gone(pids)


def test_children_of_an_engine_that_crashed_end(run):
    process = run("bash", "-c", "setsid sleep 1004 & echo last words; exit 3")
    _wait_for(lambda: process.ended() is not None, "the engine ended")
    assert process.ended() == 3
    assert process.output() == "last words\n"
    assert process.pids() == []


def test_the_exit_status_is_the_engines(run):
    process = run("bash", "-c", "kill -SEGV $$")
    _wait_for(lambda: process.ended() is not None, "the engine ended")
    assert process.ended() == 128 + signal.SIGSEGV


def test_an_executable_that_cannot_run_says_so(run):
    process = run("/no/such/engine")
    _wait_for(lambda: process.ended() is not None, "it ended")
    assert (process.ended(), process.output()) == (127, "error: /no/such/engine: No such file or directory\n")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_when_fwopt_is_killed(tmp_path, how):
    """Killed with -9 included: the keeper sees its input close."""
    owner_code = (
        "import sys, time; from pathlib import Path; from fwopt.live.servers.process import *\n"
        f"p = EngineProcess(['bash', '-c', sys.argv[1]], Path({str(tmp_path)!r}), environment({{}}), 0.2)\n"
        "p.start(); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", owner_code, UNRULY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert owner.stdout
        owner.stdout.readline()
        _wait_for(lambda: len(descendants(owner.pid)) >= 6, "keeper and engine are up")
        pids = descendants(owner.pid)
        owner.send_signal(how)
        owner.wait()
        _wait_for(lambda: _gone(pids), f"every process ended: {pids}")
    finally:
        owner.kill()
        owner.communicate()


def test_no_orphan_when_the_keeper_itself_is_killed(run):
    """The engine's own process goes at once; what it started is ended by `stop`."""
    process = run("bash", "-c", "sleep 1005 & echo ready; wait")
    _wait_for(lambda: len(process.pids()) == 2, "the engine is up")
    pids = process.pids()
    assert process._keeper
    os.kill(process._keeper.pid, signal.SIGKILL)
    _wait_for(lambda: process.ended() is not None, "the keeper ended")
    process.stop()
    _wait_for(lambda: _gone(pids), "every process ended")


def test_an_engine_gets_nothing_of_this_interpreter(run, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("LLAMA_ARG_PARALLEL", "7")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    process = run("env", env=environment({"OWN": "1"}, without="LLAMA_ARG_"))
    _wait_for(lambda: process.ended() is not None, "it ended")
    lines = process.output().splitlines()
    assert {"PYTHONSAFEPATH=1", "OWN=1", "HF_HUB_OFFLINE=1"} <= set(lines)
    assert not [line for line in lines if line.startswith(("PYTHONPATH", "LLAMA_ARG_"))]


def test_a_port_somebody_listens_on_is_taken():
    import socket

    port = free_port()
    assert not is_taken(port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert is_taken(port)
