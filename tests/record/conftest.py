"""A stub server and the real `fwopt record`, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

STUB = Path(__file__).with_name("stub_server.py")


class Recording:
    """`fwopt record` as a user starts it."""

    def __init__(self, upstream: str, out: Path, *options: str) -> None:
        self.out = out
        command = [sys.executable, "-W", "error", "-m", "fwopt", "record", "--upstream", upstream, "--out", str(out)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )
        self.said: list[str] = []
        self._ready = threading.Event()
        self.url, self._told = "", False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._ready.wait(30), self.log
        assert self.url, self.log

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.match(r"recording (http://\S+) ->", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        return "".join(self.said)

    def tell_to_stop(self) -> None:
        if not self._told and self.process.poll() is None:
            self._told = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Exit status."""
        self.tell_to_stop()
        status = self.process.wait(60)
        self._reader.join(10)
        return status

    def rows(self) -> list[dict]:
        """The lines after the header."""
        return [json.loads(line) for line in self.out.read_text().splitlines()][1:]


@pytest.fixture
def start(tmp_path):
    """start(upstream, *options) -> Recording into tmp_path/workload.jsonl, ended with the test."""
    started: list[Recording] = []

    def begin(upstream: str, *options: str, out: Path | None = None) -> Recording:
        started.append(Recording(upstream, out or tmp_path / "workload.jsonl", *options))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.stop()
        each.process.stderr.close()


@pytest.fixture
def stub():
    """URL of a fresh stub server."""
    process = subprocess.Popen([sys.executable, str(STUB), "0"], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
