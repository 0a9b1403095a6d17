"""The whole way with real engines: start, measure, end, and plan on what was measured."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]
GGUF = os.environ.get("FWOPT_SMOLLM2_GGUF")
ENGINES = [
    pytest.param(
        "vllm", (), marks=pytest.mark.skipif("FWOPT_VLLM_PYTHON" not in os.environ, reason="FWOPT_VLLM_PYTHON not set")
    ),
    pytest.param(
        "llamacpp",
        ("--scheme", "gguf-q4_1", "--weights", f"{GGUF}/SmolLM2-135M-Instruct.Q4_1.gguf"),
        marks=pytest.mark.skipif(
            not GGUF or "FWOPT_LLAMA_SERVER" not in os.environ,
            reason="FWOPT_SMOLLM2_GGUF or FWOPT_LLAMA_SERVER not set",
        ),
    ),
    pytest.param(
        "fwopt",
        (),
        marks=pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
    ),
]


@pytest.mark.live
@pytest.mark.skipif("FWOPT_SMOLLM2" not in os.environ, reason="FWOPT_SMOLLM2 (a model's folder) not set")
@pytest.mark.parametrize(("engine", "weights"), ENGINES)
def test_a_real_engine_is_measured_and_planned_for(engine, weights, tmp_path):
    def fwopt(*arguments):
        done = subprocess.run([*RUN, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    target = ("--engine", engine, "--model", os.environ["FWOPT_SMOLLM2"], "--hardware", "cpu")
    limits = ("--max-num-seqs", 2, "--max-num-batched-tokens", 256, "--max-model-len", 256)
    said = fwopt("profile", *target, *weights, *limits, "--quick", "--allow-busy", "--out", "profiles")
    assert "decode step" in said
    trace = tmp_path / "trace.jsonl"
    lines = [{"arrival_s": i * 2.0, "prompt_tokens": 60, "output_tokens": 20} for i in range(30)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = json.loads(
        fwopt("tune", trace, *target, "--profiles", "profiles", "--minimize", "ttft:p90", "--out", "run", "--json")
    )
    assert plan["engine"]["name"] == engine
    assert plan["chosen"]["evaluation"]["provenance"]["assumed"] < 0.05
    assert (tmp_path / "run" / "deploy" / engine).is_dir()
