"""OpenAI logs as gateways and log stores write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fwopt.errors import TraceError
from fwopt.workload import read, statistics
from fwopt.workload.clock import Clock

USAGE = {"prompt_tokens": 120, "completion_tokens": 30}
BODY = {"model": "m", "messages": [{"role": "system", "content": "You are a help desk. " * 20}], "max_tokens": 99}
SPEND = {
    "request_id": "chatcmpl-1", "call_type": "acompletion", "spend": 0.01, "total_tokens": 150, **USAGE,
    "startTime": "2026-11-30 12:00:00.25+00", "endTime": "2026-11-30 12:00:03.1+00", "model": "m", "session_id": "s",
    "messages": {}, "response": {}, "proxy_server_request": {}, "cache_hit": "None", "status": "success",
}  # fmt: skip
"""A row of LiteLLM's spend log, prompts not stored."""


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-30 12:00:00.125+00", 1796040000.125),
        ("2026-11-30 12:00:00.125-03", 1796050800.125),
        ("2026-11-30 12:00:00+05:30", 1796020200),
        ("2026-11-30T12:00:00+0530", 1796020200),
        ("2026-11-30 12:00:00,125", 1796040000.125),
    ],
)
def test_times_as_databases_and_loggers_write_them(text: str, seconds: float) -> None:
    assert Clock().nanoseconds(text) == round(seconds * 1000) * 10**6


@pytest.mark.parametrize("text", ["2026-11-30 12:00:00+0", "2026-11-30 12:00:00+0:30", "2026-11-30 12:00:00;1"])
def test_what_is_no_time(text: str) -> None:
    assert Clock().nanoseconds(text) is None


def test_a_spend_log_of_litellm(tmp_path: Path) -> None:
    rows = [SPEND | {"startTime": f"2026-11-30 12:00:0{at}.25+00"} for at in (3, 0)]
    w = read(written(tmp_path, *rows)).workload
    assert (w.source_format, w.arrival_s.tolist()) == ("openai", [0, 3])
    assert (w.prompt_tokens.tolist(), w.output_tokens.tolist()) == ([120, 120], [30, 30])
    assert (w.session.tolist(), w.models, len(w.block_ids)) == ([0, 0], ("m",), 0)


def test_answers_from_litellms_own_cache_are_no_load_of_the_server(tmp_path: Path) -> None:
    rows = [SPEND | {"cache_hit": hit, "completion_tokens": n} for n, hit in ((1, "False"), (2, "True"), (3, True))]
    found = read(written(tmp_path, *rows, SPEND))
    assert found.workload.output_tokens.tolist() == [1, 30]
    assert "answered by the gateway's own cache, left out: 2" in found.notes


def test_a_spend_log_without_prompt_fields_is_recognised(tmp_path: Path) -> None:
    row = {key: SPEND[key] for key in ("request_id", "startTime", "prompt_tokens", "completion_tokens", "model")}
    assert read(written(tmp_path, row)).workload.prompt_tokens.tolist() == [120]


def test_the_start_is_the_arrival_not_the_created_of_the_response(tmp_path: Path) -> None:
    rows = [
        BODY | {"startTime": start, "endTime": end, "response": {"created": round(end), "usage": USAGE}}
        for start, end in ((1764504000.5, 1764504030.0), (1764504001.75, 1764504010.0))
    ]
    assert read(written(tmp_path, *rows)).workload.arrival_s.tolist() == pytest.approx([0, 1.25])


PLACES: dict[str, dict[str, Any]] = {
    "request as text": {"request": json.dumps(BODY), "response": {"usage": USAGE}},
    "both as text": {"request": json.dumps(BODY), "response": json.dumps({"usage": USAGE})},
    "body as text": {"body": json.dumps(BODY, indent=1), "usage": json.dumps(USAGE)},
    "HTTP exchange": {
        "request": {"method": "POST", "body": BODY},
        "response": {"status": 200, "body": {"usage": USAGE}},
    },
    "HTTP exchange, bodies as text": {
        "request": {"method": "POST", "body": json.dumps(BODY)},
        "response": {"status": 200, "body": json.dumps({"usage": USAGE})},
    },
    "HTTP line beside": {"request": "POST /v1/chat/completions HTTP/1.1", "body": BODY, "response": {"usage": USAGE}},
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_bodies_wherever_they_lie(name: str, tmp_path: Path) -> None:
    plain = written(tmp_path, *({"timestamp": at, **BODY, "usage": USAGE} for at in (1e9, 1e9 + 1)))
    expected = read(plain).workload
    assert expected.max_tokens.tolist() == [99, 99]
    assert len(expected.block_ids) > 10
    found = read(written(tmp_path, *({"timestamp": at, **PLACES[name]} for at in (1e9, 1e9 + 1)))).workload
    assert found.digest == expected.digest


@pytest.mark.parametrize("field", ["request", "response"])
def test_a_body_that_was_cut_is_no_request_without_a_prompt(field: str, tmp_path: Path) -> None:
    row = {"timestamp": 1e9, "request": json.dumps(BODY), "response": json.dumps({"usage": USAGE})}
    with pytest.raises(TraceError, match=f"{field}: must be JSON where it begins with {{, got 'broken JSON'"):
        read(written(tmp_path, row | {field: row[field][:-5]}), format="openai")


def test_text_that_is_not_the_prompt_tells_no_prefix(tmp_path: Path) -> None:
    """Redacted messages beside whole tools: 50 prompts of thousands of tokens seemed to share all but their number."""
    tools = [{"type": "function", "function": {"name": f"f{i}", "description": "does this " * 10}} for i in range(12)]
    rows: list[dict[str, Any]] = [
        {
            "timestamp": 1e9 + at,
            "messages": [{"role": "user", "content": "redacted-by-litellm"}],
            "tools": tools,
            "usage": {"prompt_tokens": 3000 + 100 * at, "completion_tokens": 30},
        }
        for at in range(50)
    ]
    found = read(written(tmp_path, *rows))
    assert statistics(found.workload).prefix is None
    assert any("bytes of text (redacted, cut, images): 50;" in note for note in found.notes)
    whole = {"timestamp": 2e9, **BODY, "usage": USAGE}
    found = read(written(tmp_path, *rows, whole, whole))
    prefix = statistics(found.workload).prefix
    assert prefix is not None
    assert prefix.informed_share == pytest.approx(2 / 52)
    assert 0 < prefix.hit_share < 120 / found.workload.prompt_tokens.sum()


@pytest.mark.parametrize("place", ["line", "body"])
def test_what_failed_in_a_batch_is_not_told_to_be_counted(place: str, tmp_path: Path) -> None:
    body = {"created": 1711652795, "model": "m", "usage": USAGE}
    good = {"id": "b1", "custom_id": "r1", "response": {"status_code": 200, "body": body}, "error": None}
    refused = {"status_code": 400, "body": {"error": {"code": "bad", "message": "secret"}}}
    bad = {
        "line": good | {"response": None, "error": {"code": "batch_expired", "message": "secret"}},
        "body": good | {"response": refused},
    }[place]
    file = written(tmp_path, good, bad, good)
    with pytest.raises(TraceError, match=r":2: error: must be absent: a request that failed .*, got 'one'"):
        read(file)
    found = read(file, skip_bad=True)
    assert (len(found.workload), found.skipped_count) == (2, 1)


@pytest.mark.parametrize(
    ("metadata", "session"),
    [({"session_id": "s"}, 0), ('{"session_id": "s"}', 0), ("{'session_id': 's'}", -1), ([1], -1), ("note", -1)],
)
def test_a_session_in_the_metadata(metadata: object, session: int, tmp_path: Path) -> None:
    row = {"timestamp": 1e9, **BODY, "metadata": metadata, "usage": USAGE}
    assert read(written(tmp_path, row)).workload.session.tolist() == [session]


def test_what_says_nothing_is_absent(tmp_path: Path) -> None:
    """llama.cpp's clients send -1 for no limit; gateways write empty names."""
    row = {"timestamp": 1e9, **BODY, "max_tokens": -1, "session_id": "", "model": "", "usage": USAGE}
    w = read(
        written(tmp_path, row, row | {"conversation_id": "c", "response": {"model": "n", "usage": USAGE}})
    ).workload
    assert (w.max_tokens.tolist(), w.session.tolist(), w.models, w.model.tolist()) == ([0, 0], [-1, 0], ("n",), [-1, 0])
    for limit in (0, -2):
        with pytest.raises(TraceError, match="max_tokens: must be a whole number from 1"):
            read(written(tmp_path, row | {"max_tokens": limit}))


def test_tokens_are_counted_by_a_command_that_takes_a_tokenizer(tmp_path: Path) -> None:
    """`fwopt tune --model` names the model to plan for: told to give it, a user who had given it was at a loss."""
    with pytest.raises(TraceError, match=r"usage: must hold .*; `fwopt convert` counts them, by --model FOLDER"):
        read(written(tmp_path, {"timestamp": 1e9, **BODY}))
    rows = ({"timestamp": at, **BODY, "usage": USAGE} for at in (1e9, 1e9 + 1))
    assert "`fwopt convert` makes them exact, by --model FOLDER" in read(written(tmp_path, *rows)).notes[-1]
