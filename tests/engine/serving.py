"""A real `fwopt serve` process, and a plain client for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READY = re.compile(r"serving (\S+) on (http://\S+)")
DEADLINE_S = 120.0


class ServerProcess:
    """Started on a free port; `log` is what it has said on stderr."""

    def __init__(self, *arguments: str) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fwopt", "serve", "--port", "0", "--device", "cpu", "--threads", "1", *arguments],
            stderr=self._log, stdout=self._log, start_new_session=True,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def wait_ready(self) -> str:
        """URL."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found = READY.search(self.log)
            if found:
                return found[2]
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log}")
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log}")

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def children(self) -> list[int]:
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(DEADLINE_S)
        self._log.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


class Client:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as response:
            return response.read().decode()

    def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, decoded JSON or None)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Events up to `[DONE]`, which must come."""
        request = urllib.request.Request(self.url + path, data=json.dumps(body | {"stream": True}).encode())
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            for line in response:
                if line.startswith(b"data: "):
                    if line.strip() == b"data: [DONE]":
                        return
                    yield json.loads(line[6:])
        raise AssertionError("the stream ended without [DONE]")

    def metric(self, name: str) -> float:
        found = re.search(rf"^fwopt_{name} (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, name
        return float(found[1])
