"""Real engines from exported files: which are here, what they are given, and how they are started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fwopt.deploy import write
from fwopt.live.servers import make_server
from fwopt.live.servers.base import Launch
from fwopt.live.servers.started import StartedServer
from fwopt.spec.candidate import Batching, Bf16, Candidate, Gguf
from fwopt.spec.engine import EngineSpec
from fwopt.targets.models import load_model

BATCHING = Batching(max_num_seqs=4, max_num_batched_tokens=512, max_model_len=1024, block_size=128)
NEEDS = {
    "vllm": ("FWOPT_VLLM_PYTHON", "FWOPT_SMOLLM2"),
    "llamacpp": ("FWOPT_LLAMA_SERVER", "FWOPT_SMOLLM2_GGUF"),
    "fwopt": ("FWOPT_SMOLLM2",),
    "sglang": ("FWOPT_SGLANG_PYTHON", "FWOPT_SMOLLM2"),
}
MAKERS = {"sglang": "SGLang serves on GPU hosts"}
"""Who sets them, where it is not .ci/run."""
ARGUMENTS = {"vllm": ("--enforce-eager",)}
"""Starts in half the time."""

Prepare = Callable[..., StartedServer]


def missing(engine: str) -> list[str]:
    return [name for name in NEEDS[engine] if not os.environ.get(name)]


def needs(engine: str):
    """Skip where the engine or its weights are not here."""
    reason = f"{', '.join(missing(engine))} not set; {MAKERS.get(engine, '.ci/run sets them')}"
    return pytest.mark.skipif(bool(missing(engine)), reason=reason)


@pytest.fixture(scope="session")
def prepare(make_plan_once, cpu, tmp_path_factory) -> Prepare:
    """`prepare(engine, **fields of Launch)`: a server over freshly exported files, not started."""

    def make(engine: str, candidate: Candidate | None = None, folder: Path | None = None, **launch) -> StartedServer:
        root = tmp_path_factory.mktemp(engine)
        quantization = Gguf(type="Q4_0") if engine == "llamacpp" else Bf16()
        candidate = candidate or Candidate(quantization=quantization, batching=BATCHING)
        model = load_model(os.environ.get("FWOPT_SMOLLM2", "Qwen/Qwen3-0.6B"))
        spec = EngineSpec(name=engine, version="test")
        plan = make_plan_once(candidate, model=model, device=cpu, engine=spec, kv_blocks=64)
        write(plan, root)
        if engine == "llamacpp":
            launch.setdefault("model", os.environ["FWOPT_SMOLLM2_GGUF"])
        launch = {"arguments": ARGUMENTS.get(engine, ()), "stop_grace_s": 5.0, "ready_timeout_s": 300.0} | launch
        server = make_server(engine, Launch(folder=folder or root / engine, scratch=root / "scratch", **launch))
        assert isinstance(server, StartedServer)
        return server

    return make
