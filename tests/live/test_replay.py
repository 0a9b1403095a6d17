"""Replays against a server that really runs: what was sent, what was recorded, what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.live import ClosedLoop, ReplayOptions
from fwopt.live.problems import Lag, find
from fwopt.live.prompts import Prompts
from fwopt.live.rows import Rows
from fwopt.live.vocabulary import assumed
from fwopt.metrics import summarize
from fwopt.metrics.records import (
    FINISHED,
    REJECTED_CONTEXT,
)

from .conftest import Running, named, send, workload

Start = Callable[..., Running]


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
