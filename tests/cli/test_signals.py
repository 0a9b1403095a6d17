"""A signal that ends a verb leaves nothing half written."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fwopt.live.signals import until_signal

CODE = """
import time
from fwopt.workload import writing

def lines(workload):
    yield b"{}"
    print("writing", flush=True)
    time.sleep(60)

writing._lines = lines
from fwopt.cli.app import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_half_written_stays_behind(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 2}\n')
    (tmp_path / "out").mkdir()
    started = subprocess.Popen(
        [sys.executable, "-c", CODE, "convert", "t.jsonl", "out/w.jsonl"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "writing\n"
        assert len(list((tmp_path / "out").iterdir())) == 1
        started.send_signal(number)
        _, said = started.communicate(timeout=30)
    finally:
        started.kill()
    assert started.returncode == 128 + number
    assert "Traceback" not in said
    assert list((tmp_path / "out").iterdir()) == []


def test_signals_do_what_they_did_once_a_replay_has_ended() -> None:
    def handle(*_: object) -> None: ...

    async def work(stop: asyncio.Event) -> None:
        assert signal.getsignal(signal.SIGTERM) is not handle

    before = signal.signal(signal.SIGTERM, handle)
    try:
        until_signal(work)
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)
