"""A stub server as a process of its own, and workloads from plain lists."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fwopt.live import Endpoint, Load, Recorded, Replay, ReplayOptions, replay_sync
from fwopt.workload.builder import Builder
from fwopt.workload.columns import Workload

STUB = Path(__file__).with_name("stub.py")


@dataclass
class Running:
    """A stub that runs."""

    url: str
    process: subprocess.Popen[str]

    def endpoint(self, **changes: Any) -> Endpoint:
        return Endpoint(**{"url": self.url, "model": "stub", "engine": "vllm"} | changes)

    def seen(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/seen", timeout=10) as answer:
            return json.load(answer)


@contextmanager
def running(**settings: Any) -> Iterator[Running]:
    process = subprocess.Popen([sys.executable, STUB, "0", json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Running(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def stub() -> Iterator[Callable[..., Running]]:
    """Start stubs; they end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(**settings))


def workload(
    arrivals: Sequence[float],
    prompts: Sequence[int] | int = 40,
    outputs: Sequence[int] | int = 6,
    *,
    parents: Sequence[int | None] | None = None,
    blocks: Sequence[Sequence[int]] | None = None,
    block_tokens: int = 16,
) -> Workload:
    n = len(arrivals)
    prompts = [prompts] * n if isinstance(prompts, int) else prompts
    outputs = [outputs] * n if isinstance(outputs, int) else outputs
    builder = Builder("test", {})
    builder.block_tokens = block_tokens if blocks is not None else 0
    for i, arrival in enumerate(arrivals):
        builder.add(
            float(arrival),
            prompts[i],
            outputs[i],
            request=i,
            parent=parents[i] if parents is not None else None,
            blocks=list(blocks[i]) if blocks is not None else None,
        )
    return builder.build("test", "test")


def named(replay: Replay) -> set[str]:
    return {p.name for p in replay.problems} - {"client lag", "clock lag"}  # a busy machine may add those


def send(
    server: Running, w: Workload, load: Load | None = None, options: ReplayOptions | None = None, **e: Any
) -> Replay:
    return replay_sync(server.endpoint(**e), w, load or Recorded(rate_scale=100), options or ReplayOptions())


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of whole words with a leading space, as byte-level BPE ends up with, and a few special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = "abcdefghij"
    words = [f" {a}{b}{c}" for a in letters for b in letters for c in letters]
    vocabulary = {w: i for i, w in enumerate(["<unk>", " the", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(" [a-z]+"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<unk>", "<s>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path
