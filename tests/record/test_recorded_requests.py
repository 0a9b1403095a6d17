"""What is recorded of requests that went well, and that the files serve as traces as they are."""

from __future__ import annotations

import json
import subprocess
import sys

import aiohttp
import pytest

from fwopt.workload import read

CHAT = "/v1/chat/completions"


def call(url: str, *bodies: dict, path: str = CHAT, headers: dict | None = None) -> list[bytes]:
    """Replies, one request after the other."""
    import asyncio

    async def run() -> list[bytes]:
        replies = []
        async with aiohttp.ClientSession() as session:
            for body in bodies:
                async with session.post(url + path, json=body, headers=headers) as response:
                    replies.append(await response.read())
        return replies

    return asyncio.run(run())


def user(text: str) -> dict:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_lengths_are_the_servers_own(stub, start, path, stream) -> None:
    ask = {"/v1/completions": {"prompt": "x" * 400}, "/v1/responses": {"input": "x" * 400}}
    body = {"model": "m", "stream": stream, **ask.get(path, {"messages": [user("x" * 400)]})}
    body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = 7
    recording = start(stub)
    direct, passed = call(stub, body, path=path), call(recording.url, body, path=path)
    assert len(direct[0]) == len(passed[0])
    (row,) = recording.rows()
    sent = body.get("messages") or body.get("prompt") or body.get("input")
    assert row["prompt_tokens"] == len(json.dumps(sent)) // 4
    assert (row["output_tokens"], row["max_tokens"], row["status"], row["stream"]) == (7, 7, 200, stream)
    assert "estimated" not in row
    assert row["end_s"] >= row.get("first_token_s", 0) >= 0
    assert ("first_token_s" in row) == stream
    assert len(row["prefix_blocks"]) == row["prompt_bytes"] // 64


def test_the_client_sees_the_same_bytes_with_and_without_the_recorder(stub, start) -> None:
    recording = start(stub)
    for stub_options in ({}, {"cut_bytes": 7}, {"crlf": True, "cut_bytes": 11}):
        for options in ({}, {"stream_options": {"include_usage": True}}):
            body = {"model": "m", "messages": [user("hi")], "stream": True, "stub": stub_options, **options}
            assert call(stub, body) == call(recording.url, body)
    rows = recording.rows()
    assert len(rows) == 6
    assert not any("estimated" in row for row in rows)


def test_a_server_that_marks_other_events_is_asked_no_more(stub, start) -> None:
    body = {"model": "m", "messages": [user("hi")], "stream": True, "stub": {"null_usage": True}}
    recording = start(stub)
    call(recording.url, body, body)
    first, second = recording.rows()
    assert "estimated" not in first
    assert second["estimated"] == ["prompt_tokens", "output_tokens"]
    assert second["output_tokens"] == 5
    assert call(stub, body) == call(recording.url, body)
    assert "no longer asking" in recording.log


def test_turns_of_a_conversation_are_found_by_what_they_repeat(stub, start) -> None:
    recording = start(stub)
    history, other = [user("first question " * 20)], [user("something else " * 20)]
    for turn in range(3):
        (reply,) = call(recording.url, {"model": "m", "messages": history})
        answer = json.loads(reply)["choices"][0]["message"]
        history += [answer | {"reasoning_content": "not sent back"}, user(f"question {turn}")]
        call(recording.url, {"model": "m", "messages": other})
    rows = recording.rows()
    mine, others = rows[0::2], rows[1::2]
    assert [row.get("parent_id") for row in mine] == [None, mine[0]["id"], mine[1]["id"]]
    assert len({row["session_id"] for row in mine}) == 1
    assert len({row["session_id"] for row in others}) == 3
    assert not any("parent_id" in row for row in others)
    shared = mine[1]["prefix_blocks"]
    assert mine[2]["prefix_blocks"][: len(shared) - 1] == shared[:-1]
    assert others[0]["prefix_blocks"] == others[1]["prefix_blocks"]
    assert not set(mine[0]["prefix_blocks"]) & set(others[0]["prefix_blocks"])


def test_turns_of_completions_and_responses(stub, start) -> None:
    recording = start(stub)
    prompt = "a long beginning " * 10
    (reply,) = call(recording.url, {"model": "m", "prompt": prompt, "max_tokens": 40}, path="/v1/completions")
    grown = prompt + json.loads(reply)["choices"][0]["text"] + " and on it goes"
    call(recording.url, {"model": "m", "prompt": grown}, {"model": "m", "prompt": prompt}, path="/v1/completions")
    (reply,) = call(recording.url, {"model": "m", "input": "hi"}, path="/v1/responses")
    before = json.loads(reply)
    call(recording.url, {"model": "m", "input": "go on", "previous_response_id": before["id"]}, path="/v1/responses")
    call(recording.url, {"model": "m", "input": [user("hi"), *before["output"], user("go on")]}, path="/v1/responses")
    rows = recording.rows()
    ids = [row["id"] for row in rows]
    assert [row.get("parent_id") for row in rows] == [None, ids[0], None, None, ids[3], ids[3]]


def test_tools_calls_adapters_and_streamed_calls(stub, start) -> None:
    recording = start(stub)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    body = {"model": "tuned", "messages": [user("hi")], "tools": tools, "stub": {"tool_calls": 2, "delay_s": 0.3}}
    call(recording.url, body, {"model": "base", "messages": [user("hi")]})
    first, second = recording.rows()
    assert (first["tools"], first["tool_calls"], first["finish_reason"]) == (1, 2, "stop")
    assert (first["model"], first["adapter"]) == ("base", "tuned")
    assert second["model"] == "base"
    assert "adapter" not in second


def test_the_file_is_a_trace_as_it_is(stub, start, tmp_path) -> None:
    recording = start(stub)
    history = [user("system text " * 40)]
    for turn in range(12):
        (reply,) = call(recording.url, {"model": "Qwen/Qwen3-8B", "messages": history, "max_tokens": 5})
        history = [*history, json.loads(reply)["choices"][0]["message"], user(f"turn {turn} " * 10)]
    call(recording.url, {"model": "Qwen/Qwen3-8B", "messages": history, "stub": {"status": 429}})
    live = fwopt("inspect", str(recording.out), "--json")  # while it is being written
    assert recording.stop() == 0
    done = fwopt("inspect", str(recording.out), "--json")
    assert json.loads(live) == json.loads(done)
    found = json.loads(done)
    assert found["statistics"]["requests"] == 12
    assert found["statistics"]["prefix"]["hit_share"] > 0.5
    assert any("refused with 429 1" in note for note in found["notes"])
    workload = read(recording.out).workload
    assert workload.parent.tolist() == list(range(-1, 11))
    plan = fwopt("tune", str(recording.out), "--hardware", "h200:1", "--slo", "ttft:p99<10s", "--trials", "4",
                 cwd=tmp_path)  # fmt: skip
    assert "Deploy" in plan


def fwopt(*arguments: str, cwd=None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fwopt", *arguments], capture_output=True, text=True, timeout=300, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
