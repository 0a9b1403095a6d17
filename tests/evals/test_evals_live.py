"""Eval sets on real servers: llama.cpp with weights intact, damaged and rounded otherwise, and the reference engine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fwopt.cli.ab import ab
from fwopt.deploy import write
from fwopt.evals.files import read_answers
from fwopt.live.servers import make_server
from fwopt.live.servers.base import Launch
from fwopt.spec.ab import AbResult
from fwopt.spec.candidate import Batching, Bf16, Candidate, Gguf
from fwopt.spec.engine import EngineSpec
from fwopt.targets.models import load_model

from .conftest import run

NEEDS = {
    "llamacpp": ("FWOPT_LLAMA_SERVER", "FWOPT_SMOLLM2_GGUF", "FWOPT_SMOLLM2"),
    "fwopt": ("FWOPT_SMOLLM2",),
}
BATCHING = Batching(max_num_seqs=2, max_num_batched_tokens=512, max_model_len=512, block_size=128)
pytestmark = [pytest.mark.live, pytest.mark.alone, pytest.mark.slow]


def needs(engine: str):
    missing = [name for name in NEEDS[engine] if not os.environ.get(name)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not set; .ci/run sets them")


@pytest.fixture(scope="module")
def serve(make_plan_once, cpu, tmp_path_factory):
    """`serve(engine, quantization, weights=None)`: a server that is not started. On one thread: more wait for each
    other where the machine is busy."""

    def make(engine, quantization, weights=None):
        root = tmp_path_factory.mktemp(engine)
        candidate = Candidate(quantization=quantization, batching=BATCHING)
        model, spec = load_model(os.environ["FWOPT_SMOLLM2"]), EngineSpec(name=engine, version="test")
        write(make_plan_once(candidate, model=model, device=cpu, engine=spec, kv_blocks=64), root)
        launch = Launch(
            folder=root / engine, scratch=root / "scratch", model=weights, ready_timeout_s=300.0,
            env={"LLAMA_ARG_THREADS": "1"}, arguments=("--threads", "1") if engine == "fwopt" else (),
        )  # fmt: skip
        return make_server(engine, launch)

    return make


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """The Q8_0 file with the scales of one layer's matrices tripled."""
    from gguf import GGUFReader

    source = next(Path(os.environ["FWOPT_SMOLLM2_GGUF"]).glob("*Q8_0.gguf"))
    target = tmp_path_factory.mktemp("damaged") / source.name
    shutil.copy(source, target)
    reader = GGUFReader(str(target), "r+")
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.3.") and tensor.tensor_type.name == "Q8_0":
            blocks = tensor.data.reshape(-1).view(np.uint8).reshape(-1, 34)
            scales = blocks[:, :2].copy().view(np.float16)
            blocks[:, :2] = (scales * np.float16(3)).view(np.uint8)
    reader.data.flush()
    return target


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> Path:
    """Sentences that this model ends rightly when it is whole."""
    ends = {
        "The capital of France is": "Paris",
        "The capital of Germany is": "Berlin",
        "The capital of Italy is": "Rome",
        "The capital of Spain is": "Madrid",
        "The capital of England is": "London",
        "One, two, three, four,": "five",
        "Monday, Tuesday, Wednesday,": "Thursday",
        "The opposite of hot is": "cold",
        "Water is made of hydrogen and": "oxygen",
    }
    path = tmp_path_factory.mktemp("set") / "easy.jsonl"
    lines = [{"prompt": p, "expected": e, "grader": "regex", "max_tokens": 6} for p, e in ends.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@needs("llamacpp")
def test_llamacpp_repeats_itself_and_a_damaged_layer_is_caught(serve, damaged, easy, tmp_path):
    ask = (easy, "--api", "completions", "--out", tmp_path)
    with serve("llamacpp", Gguf(type="Q8_0"), os.environ["FWOPT_SMOLLM2_GGUF"]) as endpoint:
        for _ in range(2):
            assert run(*ask, "--url", endpoint.url).exit_code == 0
    first, second = (read_answers(path) for path in sorted((tmp_path / "easy").glob("*.gz")))
    assert first.score >= 0.7
    assert [a.text for a in first.graded.values()] == [a.text for a in second.graded.values()]
    assert first.header.served.engine == "llamacpp"
    with serve("llamacpp", Gguf(type="Q8_0"), str(damaged)) as endpoint:
        done = run(*ask, "--url", endpoint.url, "--against", first.path, "--margin", "10pp")
    assert done.exit_code == 1
    assert "worse: " in done.stdout


@needs("llamacpp")
@needs("fwopt")
def test_ab_of_llamacpp_and_the_reference_engine_ends_in_a_verdict(serve, easy, tmp_path):
    """Which one is faster is not asserted; that everything was compared and nothing failed is."""
    trace, app = tmp_path / "trace.jsonl", typer.Typer()
    app.command()(ab)
    lines = [{"arrival_s": i * 0.1, "prompt_tokens": 24, "output_tokens": 6} for i in range(8)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = os.environ["FWOPT_SMOLLM2_GGUF"]
    with serve("llamacpp", Gguf(type="Q8_0"), folder) as a, serve("fwopt", Bf16(), os.environ["FWOPT_SMOLLM2"]) as b:
        arguments = [a.url, b.url, "--evals", easy, "--workload", trace, "--requests", 8, "--blocks", 8, "--closed", 1,
                     "--limit", 4, "--tokenizer", os.environ["FWOPT_SMOLLM2"], "--out", tmp_path / "ab"]  # fmt: skip
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code in (0, 1), done.exception
    found = AbResult.model_validate_json((tmp_path / "ab" / "ab.json").read_text())
    assert (found.a.engine, found.b.engine) == ("llamacpp", "fwopt")
    assert (found.failures.a, found.failures.b) == (0, 0)
    assert {figure.metric for figure in found.latency} == {"ttft", "tpot", "e2e"}
    assert [compared.paired.items for compared in found.sets] == [4]
    assert (found.sets[0].a_errors, found.sets[0].b_errors) == (0, 0)
