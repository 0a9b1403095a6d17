"""A replay on disk: saved, streamed, cut off by a signal."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.live import Poisson, Recorded, Replay, ReplayOptions
from fwopt.live.lines import ReplayLine, ReplayWanted
from fwopt.live.result import ReplayEnd, ReplayHeader
from fwopt.metrics import Records, summarize
from fwopt.metrics.records import (
    FINISHED,
    UNFINISHED,
)

from .conftest import Running, send, workload

Start = Callable[..., Running]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_saved_replay_is_the_replay(stub: Start, tmp_path: Path, streamed: bool) -> None:
    path = tmp_path / "replay.jsonl.gz"
    options = ReplayOptions(stream_to=path if streamed else None)
    w = workload(range(40), outputs=7, parents=[None] * 39 + [1])
    replay = send(stub(fault="500", fault_every=7, gap_s=0.002), w, Poisson(rate=400), options, api_key="secret")
    if not streamed:
        replay.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["replay.jsonl.gz"]
    again = Replay.load(path)
    assert again.header == replay.header
    assert again.problems == replay.problems
    assert_same(again.records, replay.records)
    assert again.rows.chunks(0).tolist() == sorted(again.rows.chunks(0))
    assert len(again.rows.chunks(0)) == 7
    content = gzip.decompress(path.read_bytes())
    assert b"secret" not in content
    header, wanted, *lines, end = content.splitlines()
    assert [ReplayLine.model_validate_json(line).request for line in lines]
    assert ReplayHeader.model_validate_json(header) == replay.header
    assert ReplayWanted.model_validate_json(wanted).output_tokens == w.output_tokens.tolist()
    assert ReplayEnd.model_validate_json(end) == replay.end


def test_chunk_times_on_disk_are_not_written_again(stub: Start, tmp_path: Path) -> None:
    replay = send(stub(), workload(range(2)), options=ReplayOptions(stream_to=tmp_path / "a.gz"))
    with pytest.raises(InputError, match="copy that file"):
        replay.save(tmp_path / "b.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gz"]


def test_a_full_disk_is_an_error_not_a_log_line(stub: Start, tmp_path: Path) -> None:
    (tmp_path / "r.gz.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot be written: No space left"):
        send(stub(gap_s=0.2), workload(range(50)), Recorded(), ReplayOptions(stream_to=tmp_path / "r.gz"))


def assert_same(a: Records, b: Records) -> None:
    for name in Records.__slots__:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, err_msg=name)


CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from fwopt.live import *
from fwopt.workload.builder import Builder
builder = Builder("t", {{}})
for i in range(3000):
    builder.add(i * 0.01, 30, 5)
options = ReplayOptions(stream_to=Path({out!r}))
replay = replay_sync(Endpoint({url!r}, "stub", engine="vllm"), builder.build("t", "t"), Recorded(), options)
print(replay.end.complete, replay.rows.offered.sum(), [p.name for p in replay.problems])
"""


def start_client(server: Running, out: Path) -> subprocess.Popen[str]:
    code = CLIENT.format(folder=str(out.parent), out=str(out), url=server.url)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, size: int) -> None:
    until = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > size):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_killed_client_leaves_what_it_had(stub: Start, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl.gz"
    partial = tmp_path / "r.jsonl.gz.partial"
    with start_client(stub(), out) as client:
        wait_for(partial, 15_000)
        client.kill()
    assert not out.exists()
    replay = Replay.load(partial)
    finished = int((replay.rows.status == FINISHED).sum())
    assert finished > 50
    assert not replay.end.complete
    assert not replay.valid
    assert summarize(replay.records).finished == finished


def test_ctrl_c_ends_with_a_partial_result(stub: Start, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl.gz"
    with start_client(stub(gap_s=0.05), out) as client:
        wait_for(tmp_path / "r.jsonl.gz.partial", 15_000)
        client.send_signal(signal.SIGINT)
        stdout, _ = client.communicate(timeout=60)
    assert client.returncode == 0
    assert stdout.startswith("False ")
    assert "interrupted" in stdout
    replay = Replay.load(out)
    assert (replay.rows.status[replay.offered] == UNFINISHED).any()
    assert np.isfinite(replay.records.arrival_s).all()
    assert 50 < len(replay.records) < 3000


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is no replay"), (b"hello", "is no gzip"), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_no_replay(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        Replay.load(path)
