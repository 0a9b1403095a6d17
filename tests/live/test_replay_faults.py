"""Everything that can go wrong between client and server is an outcome of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.live import ClosedLoop, Endpoint, Recorded, ReplayOptions, replay_sync
from fwopt.live.stream import EventParser
from fwopt.metrics import summarize
from fwopt.metrics.records import (
    BROKEN_OFF,
    FAILED,
    FINISHED,
    PARENT_FAILED,
    TIMED_OUT,
    UNREACHABLE,
)

from .conftest import Running, named, send, workload

Start = Callable[..., Running]
SHORT = ReplayOptions(first_token_timeout_s=0.5, between_tokens_timeout_s=0.5)


FAULTS: dict[str, tuple[int, str]] = {
    "500": (FAILED, "HTTP 500: .*engine is dead"),
    "429": (FAILED, "HTTP 429: slow down"),
    "drop": (UNREACHABLE, "connection closed by the server"),
    "html": (BROKEN_OFF, "HTTP 200, but no event stream: <html>"),
    "no answer": (TIMED_OUT, "no token within 0.5 s"),
    "hang": (TIMED_OUT, "no token for 0.5 s after 2"),
    "malformed": (BROKEN_OFF, "an event is no JSON"),
    "error event": (FAILED, "error event: .*out of memory"),
    "early end": (BROKEN_OFF, r"the stream ended without \[DONE\]"),
    "abort": (BROKEN_OFF, "connection closed by the server"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_an_outcome_and_spares_the_others(stub: Start, fault: str) -> None:
    status, words = FAULTS[fault]
    server = stub(fault=fault, fault_every=3)
    replay = send(server, workload(range(9)), options=SHORT)
    hit = replay.rows.status == status
    assert hit.sum() == 3
    assert (replay.rows.status[~hit] == FINISHED).all()
    for i in np.flatnonzero(hit):
        assert re.search(words, replay.rows.errors[int(i)]), replay.rows.errors[int(i)]
    assert "requests failed" in named(replay)
    assert len(server.seen()["requests"]) == 9, "nothing is sent twice"
    assert summarize(replay.records).finished == 6
    if fault == "429":
        assert (replay.rows.retry_after_s[hit] == 3).all()


def test_a_server_that_is_not_there() -> None:
    replay = replay_sync(Endpoint("http://127.0.0.1:9", "stub", engine="vllm"), workload(range(3)), Recorded())
    assert (replay.rows.status == UNREACHABLE).all()
    assert "refused" in replay.rows.errors[0]
    assert "nothing finished" in named(replay)
    assert not replay.valid


@pytest.mark.parametrize(("fault", "status"), [("kill", UNREACHABLE), ("kill in stream", BROKEN_OFF)])
def test_a_server_killed_in_the_middle(stub: Start, fault: str, status: int) -> None:
    replay = send(stub(fault=fault, fault_every=5, gap_s=0.01), workload(range(10)), ClosedLoop(concurrency=1))
    assert replay.rows.status.tolist() == [FINISHED] * 4 + [status] + [UNREACHABLE] * 5


def test_a_wrong_model_name(stub: Start) -> None:
    replay = send(stub(), workload([0.0]), model="gpt-2")
    assert replay.rows.http_status.tolist() == [404]
    assert "does not exist" in replay.rows.errors[0]


def test_turns_of_a_failed_turn_are_recorded_not_dropped(stub: Start) -> None:
    """Of two conversations the second fails in its first turn."""
    server = stub(fault="500", fault_every=2)
    w = workload([0, 1, 30, 31, 32], parents=[None, None, 1, 2, 0])
    replay = send(server, w)
    assert replay.rows.status.tolist() == [FINISHED, FAILED, PARENT_FAILED, PARENT_FAILED, FINISHED]
    assert replay.rows.errors[3] == "continues request 1, which did not finish"
    metrics = summarize(replay.records)
    assert metrics.rejected == {"failed": 1, "parent failed": 2}


def test_the_clients_own_limits_are_not_blamed_on_the_server(stub: Start) -> None:
    """More in flight than the process may have sockets for."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "from fwopt.live import *; from fwopt.workload.builder import Builder; b = Builder('t', {}); "
        "[b.add(0.0, 20, 50) for _ in range(60)]; "
        f"replay_sync(Endpoint({stub(gap_s=0.1).url!r}, 'stub', engine='vllm'), b.build('t', 't'), Recorded())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "InputError: the client has no more sockets (Too many open files)" in done.stderr


def test_a_bad_url() -> None:
    for url in ("localhost:8000", "ftp://x", "http://", "http://a:b"):
        with pytest.raises(InputError, match="must look like"):
            replay_sync(Endpoint(url, "m", engine="vllm"), workload([0.0]), Recorded())


def test_no_file_is_left_open() -> None:
    """Sockets and files of a replay are closed when it is over."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    replay_sync(Endpoint("http://127.0.0.1:9", "m", engine="vllm"), workload(range(5)), Recorded(rate_scale=100))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_bug_of_the_client_is_not_blamed_on_the_server(stub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: EventParser, data: bytes) -> list[Any]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(EventParser, "feed", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        send(stub(), workload(range(3)))
