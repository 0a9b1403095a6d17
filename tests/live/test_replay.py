"""Replays against a server that really runs: what was sent, what was recorded, what is said about it."""

from __future__ import annotations

import gzip
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.live import ClosedLoop, Endpoint, Load, Poisson, Recorded, Replay, ReplayOptions, replay_sync
from fwopt.live.lines import ReplayLine, ReplayWanted
from fwopt.live.problems import Lag, find
from fwopt.live.prompts import Prompts
from fwopt.live.result import ReplayEnd, ReplayHeader
from fwopt.live.rows import Rows
from fwopt.live.stream import EventParser
from fwopt.live.vocabulary import assumed
from fwopt.metrics import Records, summarize
from fwopt.metrics.records import (
    BROKEN_OFF,
    FAILED,
    FINISHED,
    PARENT_FAILED,
    REJECTED_CONTEXT,
    TIMED_OUT,
    UNFINISHED,
    UNREACHABLE,
)
from fwopt.workload.columns import Workload

from .conftest import Running, workload

Start = Callable[..., Running]
SHORT = ReplayOptions(first_token_timeout_s=0.5, between_tokens_timeout_s=0.5)


def named(replay: Replay) -> set[str]:
    return {p.name for p in replay.problems} - {"client lag", "clock lag"}  # a busy machine may add those


def send(
    server: Running, w: Workload, load: Load | None = None, options: ReplayOptions | None = None, **e: Any
) -> Replay:
    return replay_sync(server.endpoint(**e), w, load or Recorded(rate_scale=100), options or ReplayOptions())


def test_what_is_sent_is_the_trace(stub: Start) -> None:
    server = stub()
    w = workload(
        range(30), [20 + i for i in range(30)], [1 + i % 7 for i in range(30)], blocks=[[i % 3] for i in range(30)]
    )
    replay = send(server, w, options=ReplayOptions(salt="s"))
    assert named(replay) == set()
    seen = {len(r["prompt"]): r for r in server.seen()["requests"]}
    prompts = Prompts(w, assumed(), "s")
    for i in range(30):
        request = seen[20 + i]
        assert request["prompt"] == prompts.tokens(i).tolist()
        assert (request["max_tokens"], request["min_tokens"], request["ignore_eos"]) == (1 + i % 7, 1 + i % 7, True)
        assert request["stream_options"] == {"include_usage": True}
    assert summarize(replay.records).output_tokens == w.output_tokens.sum()
    assert np.array_equal(replay.rows.token_events, w.output_tokens)


def test_times_are_those_of_the_server(stub: Start) -> None:
    """First token after 0.15 s, the fifth after 0.35 s; a machine under load only adds to that."""
    replay = send(stub(first_s=0.15, gap_s=0.05), workload(range(4), outputs=5))
    rows = replay.rows
    assert ((rows.first_token_s - rows.started_s) >= 0.15).all()
    assert ((rows.last_token_s - rows.started_s) >= 0.35 - 1e-3).all()
    for name, later in zip(
        ("scheduled_s", "started_s", "connected_s", "sent_s", "first_token_s", "last_token_s"),
        ("started_s", "connected_s", "sent_s", "first_token_s", "last_token_s", "end_s"),
        strict=True,
    ):
        assert (getattr(rows, name) <= getattr(rows, later) + 1e-9).all(), name
    assert replay.records.itl_counts.sum() == 4 * 4


def test_queue_time_is_unknown(stub: Start) -> None:
    replay = send(stub(), workload(range(3)))
    assert np.isnan(replay.records.scheduled_s).all()


@pytest.mark.parametrize("settings", [{"crlf": True}, {"pieces": 7}, {"pieces": 1, "crlf": True}, {"counted": True}])
def test_events_cut_anywhere(stub: Start, settings: dict[str, Any]) -> None:
    replay = send(stub(**settings), workload(range(5), outputs=9))
    assert named(replay) == set()
    assert replay.rows.token_events.tolist() == [9] * 5


def test_several_tokens_in_an_event(stub: Start) -> None:
    """7 tokens as 3 + 3 + 1: with counts in each event the gaps are exact, else spread evenly; 6 or 4 of them."""
    even = send(stub(tokens_per_event=3, gap_s=0.03), workload([0.0], outputs=7))
    assert even.records.itl_counts.sum() == pytest.approx(6)
    told = send(stub(tokens_per_event=3, gap_s=0.03, counted=True), workload([0.0], outputs=7))
    assert told.records.itl_counts.sum() == pytest.approx(4)  # those that came with the first token have no gap
    assert sorted(told.records.itl_counts[told.records.itl_counts > 0].tolist()) == [1, 3]


def test_chat_subtracts_the_template(stub: Start, tokenizer: Path) -> None:
    server = stub(template_tokens=11)
    options = ReplayOptions(tokenizer=tokenizer)
    replay = send(server, workload(range(3), 40), options=options, api="chat")
    assert named(replay) == set()
    assert replay.header.chat_template_tokens == 11
    assert replay.rows.prompt_usage.tolist() == [40, 40, 40]
    assert replay.rows.token_events.tolist() == [6, 6, 6]


def test_text_for_a_server_nobody_knows(stub: Start, tokenizer: Path) -> None:
    server = stub()
    replay = send(server, workload(range(3), 40), options=ReplayOptions(tokenizer=tokenizer), engine=None)
    assert named(replay) == {"output length not forced"}
    assert replay.valid or {"client lag", "clock lag"} & {p.name for p in replay.problems}
    request = server.seen()["requests"][0]
    assert isinstance(request["prompt"], str)
    assert "min_tokens" not in request


def test_text_needs_a_tokenizer(stub: Start) -> None:
    with pytest.raises(InputError, match="--tokenizer"):
        send(stub(), workload([0.0]), engine=None)


def test_llamacpp_gets_its_own_words_and_fresh_connections(stub: Start) -> None:
    server = stub()
    send(server, workload(range(3)), options=ReplayOptions(prefix_caching=False), engine="llamacpp")
    for request in server.seen()["requests"]:
        assert request["connection"] == "close"
        assert (request["n_predict"], request["cache_prompt"], request["ignore_eos"]) == (6, False, True)


def test_miscounts_are_named_and_invalidate(stub: Start) -> None:
    replay = send(stub(miscount=-1), workload(range(4)))
    problem = next(p for p in replay.problems if p.name == "output tokens differ")
    assert (problem.count, problem.of) == (4, 4)
    assert "-4 tokens in all" in problem.detail
    assert not replay.valid


def test_a_server_without_usage(stub: Start) -> None:
    replay = send(stub(usage=False), workload(range(4)))
    assert named(replay) == {"usage missing"}
    assert summarize(replay.records).output_tokens == 24


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


def test_a_turn_waits_for_the_turn_before(stub: Start) -> None:
    replay = send(stub(gap_s=0.05), workload([0, 1, 2], parents=[None, 0, 1]))
    rows = replay.rows
    assert (rows.started_s[1:] >= rows.end_s[:-1]).all()
    assert (rows.scheduled_s[1:] >= rows.end_s[:-1] - 1e-3).all(), "waiting for a parent is not lag"


def test_a_closed_loop_keeps_so_many_in_flight(stub: Start) -> None:
    replay = send(stub(gap_s=0.02), workload([0.0] * 12), ClosedLoop(concurrency=3))
    starts, ends = replay.rows.started_s, replay.rows.end_s
    assert max(int(((starts <= t) & (ends > t)).sum()) for t in starts) == 3
    assert (starts[:3] < ends.min()).all()


def test_longer_than_the_servers_context_is_not_sent(stub: Start) -> None:
    server = stub()
    replay = send(server, workload(range(3), [40, 100, 40], 20), max_context_tokens=100)
    assert replay.rows.status.tolist() == [FINISHED, REJECTED_CONTEXT, FINISHED]
    assert len(server.seen()["requests"]) == 2


def test_cold_empties_and_salts_and_warm_sends_twice(stub: Start) -> None:
    server = stub()
    w = workload(range(3))
    cold = [send(server, w) for _ in range(2)]
    assert server.seen()["resets"] == 2
    assert cold[0].cache.emptied
    assert cold[0].cache.salt != cold[1].cache.salt
    warm = send(server, w, options=ReplayOptions(cache="warm"))
    sent = [r["prompt"] for r in server.seen()["requests"]]
    assert len(sent) == 12
    assert sorted(sent[6:9]) == sorted(sent[9:])
    assert sorted(sent[:3]) != sorted(sent[3:6])
    assert warm.cache.control == "warm"
    assert not send(stub(reset_status=404), w).cache.emptied


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


def test_a_bad_url() -> None:
    for url in ("localhost:8000", "ftp://x", "http://", "http://a:b"):
        with pytest.raises(InputError, match="must look like"):
            replay_sync(Endpoint(url, "m", engine="vllm"), workload([0.0]), Recorded())


def test_no_file_is_left_open() -> None:
    """Sockets and files of a replay are closed when it is over."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    replay_sync(Endpoint("http://127.0.0.1:9", "m", engine="vllm"), workload(range(5)), Recorded(rate_scale=100))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def rows_with(send_lag_s: float, ttft_s: float, tpot_s: float, n: int = 50) -> Rows:
    rows = Rows.empty(n)
    rows.scheduled_s[:] = np.arange(n)
    rows.started_s[:] = rows.scheduled_s + send_lag_s
    rows.first_token_s[:] = rows.started_s + ttft_s
    rows.last_token_s[:] = rows.first_token_s + tpot_s * 9
    rows.token_events[:] = rows.completion_usage[:] = 10
    rows.prompt_usage[:] = 40
    rows.status[:] = FINISHED
    return rows


@pytest.mark.parametrize(
    ("send_lag_s", "clock_lag_s", "ttft_s", "tpot_s", "found"),
    [
        (0.009, 0.009, 0.05, 0.01, set()),
        (0.011, 0.0, 0.05, 0.01, {"client lag"}),
        (0.011, 0.0, 1.0, 0.01, set()),
        (0.0, 0.011, 1.0, 0.01, {"clock lag"}),
        (0.0, 0.011, 1.0, 0.1, set()),
        (0.06, 0.03, 1.0, 0.1, {"client lag", "clock lag"}),
    ],
)
def test_a_client_that_cannot_keep_up_says_so(
    send_lag_s: float, clock_lag_s: float, ttft_s: float, tpot_s: float, found: set[str]
) -> None:
    lengths = np.full(50, 40, np.int32), np.full(50, 10, np.int32)
    lag = Lag.of(np.full(100, clock_lag_s))
    rows = rows_with(send_lag_s, ttft_s, tpot_s)
    problems = find(rows, *lengths, forced=True, clock_lag=lag, complete=True, warm_up_failures=0)
    assert {p.name for p in problems} == found
    assert all(p.invalidates for p in problems)


def test_a_bug_of_the_client_is_not_blamed_on_the_server(stub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: EventParser, data: bytes) -> list[Any]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(EventParser, "feed", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        send(stub(), workload(range(3)))
