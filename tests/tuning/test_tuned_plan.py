"""From tuned kernels to a server that runs them, for real on this machine's processor: times, plan, files, serving."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
pytest.importorskip("torch", reason="needs torch")

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
SETTINGS = {
    "search": {"kernels": ["tuned"], "kv_dtypes": ["bf16"], "quantizations": ["bf16"], "max_num_seqs": [8],
               "max_num_batched_tokens": [512]},
}  # fmt: skip
TUNED = {"rms_norm", "rope_cache", "decode_attention", "prefill_attention"}

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Threads that wait for each other take a multiple of the time on cores that are busy."""


def fwopt(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fwopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd, env=ONE_THREAD)


def done(*arguments: object, cwd: Path) -> str:
    found = fwopt(*arguments, cwd=cwd)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a trace, and a store with the operators of this processor and kernels tuned on it."""
    here = tmp_path_factory.mktemp("tuned")
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text(json.dumps(CONFIG))
    (here / "fwopt.yaml").write_text(yaml.safe_dump(SETTINGS))
    choose, at, lines = random.Random(0), 0.0, []
    for _ in range(30):
        at += choose.expovariate(20)
        lines.append(
            {"arrival_s": at, "prompt_tokens": choose.randint(16, 100), "output_tokens": choose.randint(4, 20)}
        )
    (here / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ("--model", here / "model", "--hardware", "cpu")
    done("profile", "--operators", *common, "--quick", "--allow-busy", "--out", here / "store", cwd=here)
    tuned = json.loads(
        done("kernels", "tune", "trace.jsonl", *common, "--engine", "fwopt", "--device", "cpu", "--buckets", 1,
             "--op", "rms_norm", "--op", "rope_cache", "--op", "decode_attention",
             "--op", "prefill_attention", "--profiles", here / "store",
             "--out", here / "store", "--json", cwd=here)
    )  # fmt: skip
    assert {f["operator"] for f in tuned["families"]} == TUNED
    done("tune", "trace.jsonl", *common, "--engine", "fwopt", "--profiles", here / "store", "--minimize", "e2e:mean",
         "--allow-unmeasured", "--out", "run", cwd=here)  # fmt: skip
    return here


@pytest.fixture
def files(place: Path) -> Path:
    return place / "run" / "deploy" / "fwopt"


def test_the_plan_chooses_with_the_tuned_times_and_says_so(place: Path, files: Path) -> None:
    plan = json.loads((place / "run" / "plan.json").read_text())
    digest = plan["chosen"]["candidate"]["kernels"]
    assert f"kernels-{digest[:8]}" in (place / "run" / "report.md").read_text()
    assert {c["operator"] for c in plan["kernels"]["choices"]} == TUNED
    assert {c["variant"] for c in plan["kernels"]["choices"]} == {"torch"}
    notes = " ".join(plan["notes"])
    assert "runs with the kernels tuned on" in notes
    assert "on a processor they are the torch fallbacks" in notes
    assert [p["what"] for p in plan["inputs"]][-1] == "kernels"
    assert yaml.safe_load((files / "candidate.yaml").read_text())["kernels"] == digest
    exported = yaml.safe_load((files / "kernels.yaml").read_text())
    assert exported == json.loads(json.dumps(plan["kernels"]))


def test_the_exported_files_serve_with_exactly_that_set(place: Path, files: Path) -> None:
    records, log = place / "records.jsonl", place / "serve.log"
    arguments = ["serve", "--config", files / "candidate.yaml", "--load-format", "dummy", "--port", "0",
                 "--threads", "1", "--kv-cache-gib", "0.05", "--records", records]  # fmt: skip
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "fwopt", *map(str, arguments)], stderr=said, cwd=place, env=ONE_THREAD
        )
    try:
        url, end = None, time.monotonic() + 120
        while url is None and time.monotonic() < end:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
            ready = re.search(r"serving \S+ on (http://\S+)", log.read_text())
            url = ready and ready[1]
        body = {"model": str(place / "model"), "prompt": [5, 6, 7], "max_tokens": 6, "ignore_eos": True}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] == 6
    finally:
        server.terminate()
        server.wait(60)
    header = json.loads(records.read_text().splitlines()[0])
    chosen = yaml.safe_load((files / "kernels.yaml").read_text())["choices"]
    assert (header["operators"], header["kernel_choices"]) == ("triton", len(chosen))


def test_a_set_that_is_not_the_one_named_is_not_served(place: Path, files: Path, tmp_path: Path) -> None:
    for name in ("candidate.yaml", "kernels.yaml"):
        (tmp_path / name).write_text((files / name).read_text())
    other = (tmp_path / "kernels.yaml").read_text()
    serve = ("serve", "--config", tmp_path / "candidate.yaml", "--load-format", "dummy")
    for text, words in (
        (other.replace("rows: ", "rows: 1"), "holds the kernels "),
        ("", "kernels.yaml: "),
    ):
        (tmp_path / "kernels.yaml").write_text(text)
        found = fwopt(*serve, cwd=place)
        assert (found.returncode, found.stdout) == (2, "")
        assert words in found.stderr
        assert found.stderr.count("\n") == 1
    found = fwopt(*serve, "--operators", "torch", cwd=place)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "names tuned kernels" in found.stderr


def test_a_run_goes_on_only_with_the_kernels_it_began_with(place: Path) -> None:
    assert fwopt("tune", "--resume", "run", cwd=place).returncode == 0
    store = next((place / "store").glob("*/kernels-*"))
    beside = store.with_name("moved")
    store.rename(beside)
    try:
        found = fwopt("tune", "--resume", "run", cwd=place)
    finally:
        beside.rename(store)
    assert found.returncode == 2
    assert "the tuned kernels changed since" in found.stderr


def test_kernels_are_asked_for_only_where_there_are_some(place: Path, tmp_path: Path) -> None:
    found = fwopt(
        "tune", "trace.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h200:1", "--out", tmp_path / "run", cwd=place
    )
    assert found.returncode == 2
    assert "search.kernels: vllm runs kernels of its own; plan with --engine fwopt" in found.stderr
