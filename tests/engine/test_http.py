"""The HTTP surface, on a real server process with a tiny random model."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from fwopt.cli.serving import read_config
from fwopt.engine.records import read_header, read_records
from fwopt.errors import InputError

from .serving import Client, ServerProcess, alive

OPTIONS = ("--dtype", "fp32", "--kv-cache-gib", "0.02", "--max-model-len", "256", "--served-model-name", "tiny")


@pytest.fixture(scope="module")
def server(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("serve")
    config = folder / "candidate.yaml"
    config.write_text(
        yaml.safe_dump({"model": str(text_model), "batching": {"max_num_seqs": 8, "max_num_batched_tokens": 64}})
    )
    process = ServerProcess("--config", str(config), "--records", str(folder / "steps.jsonl"), *OPTIONS)
    process.records = folder / "steps.jsonl"
    yield process
    process.close()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Client:
    return Client(server.wait_ready())


GREEDY = {"model": "tiny", "prompt": "hello there", "temperature": 0, "max_tokens": 24, "ignore_eos": True}


def complete(client: Client, **fields) -> dict:
    status, body = client.post("/v1/completions", GREEDY | fields)
    assert status == 200, body
    return body


def test_health_and_models(client):
    assert client.get("/health") == ""
    assert '"id": "tiny"' in client.get("/v1/models")
    assert '"max_model_len": 256' in client.get("/v1/models")


def test_a_completion_counts_its_tokens(client):
    body = complete(client)
    assert body["object"] == "text_completion"
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (11, 24, 35)


def test_text_and_its_token_ids_are_the_same_prompt(client):
    ids = [list(client_alphabet()).index(c) + 3 for c in "hello"]
    assert complete(client, prompt=ids)["choices"] == complete(client, prompt="hello")["choices"]


def client_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_a_stream_is_the_same_text_one_event_a_token(client):
    events = list(client.stream("/v1/completions", GREEDY | {"stream_options": {"include_usage": True}}))
    *parts, usage = events
    assert len(parts) == 24
    assert "".join(p["choices"][0]["text"] for p in parts) == complete(client)["choices"][0]["text"]
    assert [p["choices"][0]["finish_reason"] for p in parts] == [None] * 23 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 24


def test_a_stream_without_usage_has_none(client):
    assert all(len(e["choices"]) == 1 for e in client.stream("/v1/completions", GREEDY))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_cuts_the_text_before_it(client, streamed):
    text = complete(client)["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    wanted = GREEDY | {"stop": ["never-there", stop]}
    if streamed:
        events = list(client.stream("/v1/completions", wanted))
        found = "".join(e["choices"][0]["text"] for e in events)
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        choice = client.post("/v1/completions", wanted)[1]["choices"][0]
        found, reason = choice["text"], choice["finish_reason"]
    assert found == text[: text.index(stop)]
    assert reason == "stop"
    wait_idle(client)


def test_chat_runs_the_template(client):
    messages = [{"role": "user", "content": "hi"}]
    wanted = {"messages": messages, "temperature": 0, "max_completion_tokens": 8, "ignore_eos": True}
    status, body = client.post("/v1/chat/completions", wanted)
    assert status == 200
    assert body["usage"]["prompt_tokens"] == len("user: hi") + 3
    text = body["choices"][0]["message"]["content"]
    events = list(client.stream("/v1/chat/completions", wanted))
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == text


def test_twelve_at_once_get_what_each_gets_alone(client):
    prompts = [f"prompt number {i} " * (1 + i % 4) for i in range(12)]
    alone = [complete(client, prompt=p)["choices"] for p in prompts]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda p: complete(client, prompt=p)["choices"], prompts))
    assert together == alone


def test_the_prefix_cache_is_reported_and_can_be_emptied(client):
    long = "the same beginning " * 5
    complete(client, prompt=long)
    assert complete(client, prompt=long)["usage"]["prompt_tokens_details"]["cached_tokens"] == 80
    assert client.post("/reset_prefix_cache") == (200, None)
    assert complete(client, prompt=long)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_leaving_a_stream_ends_the_request(client):
    events = client.stream("/v1/completions", GREEDY | {"max_tokens": 200})
    next(events)
    events.close()
    wait_idle(client)


def wait_ended(pids: list[int]) -> None:
    """Children end a moment after their parent."""
    for _ in range(200):
        if not any(alive(pid) for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError(f"processes are left: {[pid for pid in pids if alive(pid)]}")


def wait_idle(client: Client) -> None:
    """Until nothing runs; a finished request makes the counters move on."""
    for _ in range(200):
        complete(client, max_tokens=1)
        if client.metric("running") == client.metric("waiting") == client.metric("kv_blocks_used") == 0:
            return
        time.sleep(0.05)
    raise AssertionError("a request that nobody waits for is still running")


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "other"}, 404, "'other' does not exist"),
        ({"max_tokens": 300}, 400, "must fit in 256 tokens, got 11 and 300"),
        ({"prompt": "x" * 256}, 400, "must fit in 256 tokens"),
        ({"prompt": []}, 400, "at least one token"),
        ({"prompt": [5, 320]}, 400, "from 0 to 319, got 320"),
        ({"prompt": ["a", "b"]}, 400, "one prompt a request, got 2"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"min_tokens": 30}, 400, "min_tokens must be at most max_tokens, got 30 > 24"),
        ({"n": 2}, 400, "n is not implemented by this server, got 2"),
        ({"logprobs": 3}, 400, "logprobs is not implemented"),
        ({"prompt": None}, 400, "prompt"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_bad_request_is_answered_with_the_rule(client, fields, status, says, streamed):
    got, body = client.post("/v1/completions", GREEDY | {"stream": streamed} | fields)
    assert (got, says in body["error"]["message"]) == (status, True), body


def test_what_is_no_json_or_no_route(client):
    assert client.post("/v1/completions", b"{")[0] == 400
    assert client.post("/v1/nowhere", {})[0] == 404


def test_every_token_is_in_the_records(client, server):
    wait_idle(client)
    output = client.metric("output_tokens_total")
    prompt = client.metric("prompt_tokens_total") - client.metric("cached_tokens_total")
    steps = client.metric("steps_total")
    for _ in range(100):
        records = list(read_records(server.records))
        if len(records) == steps:
            break
        time.sleep(0.05)
    assert sum(r.shape.sampled for r in records) == output
    assert sum(length for r in records for _, length in r.shape.chunks) == prompt
    assert all(b.start_s >= a.start_s + a.step_s for a, b in itertools.pairwise(records))
    assert read_header(server.records)["kv_blocks"] == client.metric("kv_blocks")


# --- the process


def test_sigterm_ends_everything_with_status_0(text_model):
    process = ServerProcess("--model", str(text_model), *OPTIONS)
    client = Client(process.wait_ready())

    def ask() -> None:
        with suppress(OSError):  # the server goes away in the middle
            client.post("/v1/completions", GREEDY | {"max_tokens": 200})

    asking = threading.Thread(target=ask)
    asking.start()
    children = process.children()
    process.process.send_signal(signal.SIGTERM)
    try:
        assert process.wait() == 0
        wait_ended(children)
    finally:
        asking.join()
        process.close()


def test_a_dying_engine_ends_the_server(text_model):
    process = ServerProcess("--model", str(text_model), *OPTIONS)
    process.wait_ready()
    engine = next(pid for pid in process.children() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(engine, signal.SIGKILL)
    assert process.wait() == 1
    assert "the engine process died" in process.log
    process.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"batching: {max_num_seqs: 4, max_num_seqs: 8}\n", "key 'max_num_seqs' is given twice"),
        (b"model: caf\xe9\n", "must be YAML: 'utf-8' codec can't decode"),
    ],
)
def test_a_config_that_says_no_one_thing(tmp_path, content, words):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        read_config(file)


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        ({"batching": {"max_num_seqs": 0}}, (), "batching.max_num_seqs: Input should be greater than 0, got 0"),
        ({"colour": "red"}, (), "colour: Extra inputs are not permitted"),
        ({"parallelism": {"pp": 2}}, (), "by tensor parallelism only, got pp=2"),
        ({}, ("--max-model-len", "9999"), "at most the model's 512 positions, got 9999"),
        ({}, ("--kv-cache-gib", "0.0001"), "must hold one request of max_model_len=256"),
        ({}, ("--dtype", "fp64"), "--dtype must be bf16 or fp32, got 'fp64'"),
        ({"model": "/nowhere"}, (), "/nowhere: no such file or folder"),
        ({"quantization": {"kind": "fp8", "scale": "block"}}, (), "one scale a tensor"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_2(text_model, tmp_path, config, options, says):
    file = tmp_path / "candidate.yaml"
    file.write_text(yaml.safe_dump({"model": str(text_model)} | config))
    named = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
    process = ServerProcess("--config", str(file), *itertools.chain.from_iterable(named.items()))
    assert process.wait() == 2
    lines = [line for line in process.log.splitlines() if line]
    assert len(lines) == 1
    assert says in lines[0]
    process.close()


def test_dummy_weights_need_a_config_alone(text_model, tmp_path):
    (tmp_path / "config.json").write_text((text_model / "config.json").read_text())
    process = ServerProcess("--model", str(tmp_path), "--load-format", "dummy", *OPTIONS)
    client = Client(process.wait_ready())
    assert complete(client, prompt=[5, 6, 7], max_tokens=4)["choices"][0]["text"].count(" ") == 4
    assert "must be a list of token ids" in client.post("/v1/completions", GREEDY)[1]["error"]["message"]
    process.close()


def test_a_catalogue_name_serves_with_dummy_weights_only():
    process = ServerProcess("--model", "Qwen/Qwen3-8B", *OPTIONS)
    assert process.wait() == 2
    assert "no weights here" in process.log
    process.close()
