"""One answer, event by event, without a network."""

from __future__ import annotations

import json

from fwopt.live.exchange import Exchange
from fwopt.live.rows import Rows
from fwopt.metrics.records import BROKEN_OFF, FINISHED


def answered(*events: dict) -> Rows:
    """The row of an answer whose events came one second apart."""
    rows = Rows.empty(1)
    exchange = Exchange(0, rows, 0.0, 0.0, False, lambda _: None)
    exchange.head(200, {b"content-type": b"text/event-stream"}, 0.0)
    for at, event in enumerate([*map(json.dumps, events), "[DONE]"], 1):
        exchange.body(b"data: " + event.encode() + b"\n\n", float(at))
    return rows


def closing(text: str) -> dict:
    return {"choices": [{"index": 0, "text": text, "finish_reason": "length"}]}


def used(tokens: int) -> dict:
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}


def test_a_lone_token_without_text_is_a_token():
    """vLLM closes a one-token answer whose token is half a character with an event without text."""
    rows = answered(closing(""), used(1))
    assert rows.status[0] == FINISHED
    assert rows.first_token_s[0] == rows.last_token_s[0] == 1.0


def test_an_answer_without_tokens_is_no_answer():
    assert answered(closing(""), used(0)).status[0] == BROKEN_OFF


def test_a_closing_event_without_text_repeats_no_token():
    more = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
    rows = answered(more, closing(""), used(1))
    assert rows.token_events[0] == 1
    assert rows.first_token_s[0] == 1.0
