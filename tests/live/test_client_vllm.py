"""The client against real vLLM: the engine's own counts are the trace's, and its cache shares what the trace shares."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fwopt.live import ClosedLoop, Endpoint, Replay, ReplayOptions, replay_sync
from fwopt.live.identify import complete
from fwopt.metrics import summarize

from .conftest import workload

PYTHON, MODEL = os.environ.get("FWOPT_VLLM_PYTHON"), os.environ.get("FWOPT_SMOLLM2")
pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON or not MODEL, reason="FWOPT_VLLM_PYTHON and FWOPT_SMOLLM2 name vLLM and a model"),
]
FLAGS = "--dtype bfloat16 --max-model-len 2048 --max-num-seqs 16 --enforce-eager --enable-prompt-tokens-details"


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    command = [PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", MODEL, *FLAGS.split()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "smol"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield complete(Endpoint(f"http://127.0.0.1:{port}", ""), named=False)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-2000:])


def counted(replay: Replay) -> set[str]:
    return {p.name for p in replay.problems} - {"client lag", "clock lag"}


def test_vllm_says_what_it_is(vllm: Endpoint) -> None:
    assert (vllm.engine, vllm.model, vllm.max_context_tokens) == ("vllm", "smol", 2048)


@pytest.mark.parametrize("per_chunk", [False, True])
def test_counts_are_the_traces(vllm: Endpoint, per_chunk: bool) -> None:
    w = workload([0.0] * 24, [7 + 11 * i for i in range(24)], [1 + 2 * (i % 10) for i in range(24)])
    options = ReplayOptions(tokenizer=Path(MODEL or ""), usage_per_chunk=per_chunk)
    replay = replay_sync(vllm, w, ClosedLoop(concurrency=8), options)
    assert counted(replay) == set(), replay.problems
    assert replay.rows.prompt_usage.tolist() == w.prompt_tokens.tolist()
    assert replay.rows.completion_usage.tolist() == w.output_tokens.tolist()
    assert replay.records.itl_counts.sum() == pytest.approx(float((w.output_tokens - 1).sum()), rel=0.05)


def test_chat_counts_are_the_traces(vllm: Endpoint) -> None:
    from dataclasses import replace

    w = workload([0.0] * 8, [60 + 13 * i for i in range(8)], 6)
    options = ReplayOptions(tokenizer=Path(MODEL or ""))
    replay = replay_sync(replace(vllm, api="chat"), w, ClosedLoop(concurrency=4), options)
    assert counted(replay) == set(), replay.problems
    assert replay.header.chat_template_tokens > 0


def test_text_counts_are_the_traces(vllm: Endpoint) -> None:
    w = workload([0.0] * 8, [10 + 50 * i for i in range(8)], 4)
    options = ReplayOptions(tokenizer=Path(MODEL or ""), prompts="text")
    replay = replay_sync(vllm, w, ClosedLoop(concurrency=4), options)
    assert counted(replay) == set(), replay.problems


def test_the_cache_shares_what_the_trace_shares(vllm: Endpoint) -> None:
    """Six prompts of 400 tokens, each pair sharing its first 256, which are two blocks of vLLM's cache on a CPU."""
    blocks = [[10 * (i // 2), 10 * (i // 2) + 1, 100 + i] for i in range(6)]
    w = workload([0.0] * 6, 400, 4, blocks=blocks, block_tokens=128)
    cold = replay_sync(vllm, w, ClosedLoop(concurrency=1), ReplayOptions())
    assert cold.cache.emptied
    assert cold.rows.cached_usage.tolist() == [0, 256] * 3
    again = replay_sync(vllm, w, ClosedLoop(concurrency=1), ReplayOptions())
    assert again.rows.cached_usage.tolist() == [0, 256] * 3, "another salt, nothing left from before"
    warm = replay_sync(vllm, w, ClosedLoop(concurrency=1), ReplayOptions(cache="warm"))
    assert np.all(warm.rows.cached_usage == 384), "every whole block of the cache"
    assert summarize(warm.records).cached_prompt_tokens == 6 * 384
