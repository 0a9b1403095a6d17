"""Real vLLM on the CPU behind the recorder: lengths are vLLM's own counts, sharing is what vLLM's cache sees."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import aiohttp
import pytest

from fwopt.workload import read

PYTHON, MODEL = os.environ.get("FWOPT_VLLM_PYTHON"), os.environ.get("FWOPT_SMOLLM2")
VLLM_BLOCK = 32
"""The smallest that its CPU attention takes."""
pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.skipif(not (PYTHON and MODEL), reason="FWOPT_VLLM_PYTHON and FWOPT_SMOLLM2 are not both set"),
]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    """URL of a running `vllm serve`."""
    scratch = tmp_path_factory.mktemp("vllm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONPATH", None)
    command = [
        PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", MODEL, "--dtype", "bfloat16", "--max-model-len", "2048",
        "--max-num-seqs", "16", "--enforce-eager", "--port", str(port), "--host", "127.0.0.1",
        "--served-model-name", "smol", "--enable-prompt-tokens-details", "--enable-prefix-caching",
        "--block-size", str(VLLM_BLOCK),
    ]  # fmt: skip
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=scratch, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(url + "/health"):
            assert process.poll() is None, (scratch / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (scratch / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def counters(url: str) -> dict[str, float]:
    """vLLM's own totals."""
    with urllib.request.urlopen(url + "/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    names = ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_hits_total", "prefix_cache_queries_total")
    return {name: sum(float(x.split()[-1]) for x in lines if x.startswith(f"vllm:{name}{{")) for name in names}


async def conversations(url: str, topic: str) -> None:
    """Four of three turns each, one after the other, so that what could be shared is in the cache in time."""
    system = {
        "role": "system",
        "content": f"You know everything about {topic}. " + "You are patient with everybody. " * 30,
    }
    async with aiohttp.ClientSession() as session:
        for number in range(4):
            history = [system, {"role": "user", "content": f"Tell me about {topic} number {number}."}]
            for turn in range(3):
                body = {"model": "smol", "messages": history, "max_tokens": 12 + number, "temperature": 0}
                answer = await ask(session, url, body, stream=number % 2 == 0)
                question = {"role": "user", "content": f"And then, after {turn} days?"}
                history = [*history, {"role": "assistant", "content": answer}, question]
        body = {"model": "smol", "prompt": "Once upon a time " * 20, "max_tokens": 9, "ignore_eos": True}
        for stream in (True, False):
            assert await status(session, url + "/v1/completions", body | {"stream": stream}) == 200
        body = {"model": "smol", "input": "Hello", "max_output_tokens": 8}
        assert await status(session, url + "/v1/responses", body) == 200
        assert await status(session, url + "/v1/completions", {"model": "smol", "prompt": "word " * 3000}) == 400


async def ask(session: aiohttp.ClientSession, url: str, body: dict, *, stream: bool) -> str:
    """The answer's text."""
    async with session.post(url + "/v1/chat/completions", json=body | {"stream": stream}) as reply:
        text = await reply.text()
        assert reply.status == 200, text
    if not stream:
        return json.loads(text)["choices"][0]["message"]["content"]
    assert '"usage"' not in text, "the client did not ask for it"
    rows = [json.loads(part[6:]) for part in text.split("\n\n") if part.startswith("data: {")]
    return "".join(row["choices"][0]["delta"].get("content") or "" for row in rows)


async def status(session: aiohttp.ClientSession, url: str, body: dict) -> int:
    async with session.post(url, json=body) as reply:
        await reply.read()
        return reply.status


@pytest.mark.parametrize("tokenizer", [True, False], ids=["tokens", "text"])
def test_recorded_lengths_and_sharing_are_vllms_own(vllm, start, tokenizer) -> None:
    before = counters(vllm)
    recording = start(vllm, *(["--tokenizer", MODEL] if tokenizer else []))
    asyncio.run(conversations(recording.url, "trains" if tokenizer else "ships"))
    recording.stop()
    spent = {name: value - before[name] for name, value in counters(vllm).items()}
    rows = [row for row in recording.rows() if "left_out" not in row]
    assert len(rows) == 15
    assert not any("estimated" in row for row in rows)
    assert sum(row["prompt_tokens"] for row in rows) == spent["prompt_tokens_total"]
    assert sum(row["output_tokens"] for row in rows) == spent["generation_tokens_total"]
    assert sum("parent_id" in row for row in rows) == 8
    assert len({row["session_id"] for row in rows if row["api"] == "chat"}) == 4
    inspected = json.loads(fwopt("inspect", str(recording.out), "--json"))
    assert any("refused with 400 1" in note for note in inspected["notes"])
    vllms = spent["prefix_cache_hits_total"] / spent["prefix_cache_queries_total"]
    assert abs(inspected["statistics"]["prefix"]["hit_share"] - vllms) < 0.1
    if tokenizer:
        each_request_shares_what_vllm_found_cached([row for row in rows if row["api"] == "chat"])
    assert len(read(recording.out).workload) == 15


def each_request_shares_what_vllm_found_cached(rows: list[dict]) -> None:
    """Within a block; vLLM may also find tokens that it generated itself, which a trace's prefixes do not hold."""
    for number, row in enumerate(rows):
        blocks = row["prefix_blocks"]
        assert len(blocks) == row["prompt_tokens"] // 16
        known = rows[:number]
        shared = 16 * max((agreeing(blocks, other["prefix_blocks"]) for other in known), default=0)
        generated = max((other["output_tokens"] for other in known), default=0)
        assert shared - VLLM_BLOCK < row.get("cached_tokens", 0) < shared + generated + VLLM_BLOCK


def agreeing(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_the_recording_is_planned_for_as_it_is(vllm, start, tmp_path) -> None:
    recording = start(vllm, "--tokenizer", MODEL)
    asyncio.run(conversations(recording.url, "planes"))
    recording.stop()
    options = ("--model", "Qwen/Qwen3-8B", "--hardware", "h200:1", "--slo", "ttft:p99<10s", "--trials", "4")
    text = fwopt("tune", str(recording.out), *options, cwd=tmp_path)
    assert "Deploy" in text


def fwopt(*arguments: str, cwd=None) -> str:
    command = [sys.executable, "-m", "fwopt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout
