"""vLLM's own fused experts: timed in vLLM's Python, handed over, and vLLM asked what it takes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fwopt.errors import InputError
from fwopt.paths import data_folder
from fwopt.tuning.family import Family, Row
from fwopt.tuning.operators import home, targets, vllm_python, vllm_version
from fwopt.tuning.tuned import keep
from fwopt.tuning.vllm_baseline import own_choices
from fwopt_kernels.aot import sources
from fwopt_kernels.host import Host

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt.tuning.vllm_moe import SPACES, VLLM_FUSED_MOE
from fwopt_kernels.correctness import differences

PYTHON = os.environ.get("FWOPT_VLLM_PYTHON")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="FWOPT_VLLM_PYTHON is not set (.ci/install-vllm-cpu makes one)")
HOST = Host("cuda", "NVIDIA H200", "sm_90", "3.6.0", "2.11.0")
SHAPE = {"experts": 128, "top_k": 8, "hidden": 2048, "intermediate": 768}


def fwopt(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fwopt.cli.app import main; main()", "kernels", *arguments]
    env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def kept(root: Path, format: str, *names: str) -> None:
    """Winners at 1, 64, ... tokens."""
    rows = [
        Row(format, (("tokens", 64**at), *SHAPE.items()), name, at == 0, True, 1.0, 1e-5, 1e-5, 1e-5, 9)
        for at, name in enumerate(names)
    ]
    hashed = {name: sources(target) for name, target in targets().items()}
    keep(root, "h200", HOST, {"vllm_fused_moe": rows}, hashed, when="2026-01-01 00:00 UTC", machine={}, load="",
         command="test")  # fmt: skip


def export(root: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    return fwopt("export", "vllm", "--device", "h200", "--triton", "3.6.0", "--profiles", str(root), "--out",
                 str(root / "files"), **environment)  # fmt: skip


@pytest.mark.live
@needs_vllm
def test_vllm_is_asked_and_a_file_that_it_does_not_take_is_an_error(tmp_path: Path) -> None:
    chosen = {format: [v.id for v in SPACES[format].variants()[:3]] for format in ("bf16", "fp8-block")}
    for format, names in chosen.items():
        kept(tmp_path, format, *names)
    done = export(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "told that its device is NVIDIA H200 takes them: asked at 16 sizes of 2 layers" in done.stdout
    names = {path.name for path in (tmp_path / "files").iterdir()}
    stem = "E=128,N=768,device_name=NVIDIA_H200"
    assert names == {f"{stem}.json", f"{stem},dtype=fp8_w8a8,block_shape=[128,128].json"}

    off = export(tmp_path, VLLM_BATCH_INVARIANT="1")
    assert off.returncode == 2
    assert off.stderr.count("\n") == 1
    assert f"{stem}.json: at 1 tokens vLLM " in off.stderr


def test_without_vllm_nothing_is_timed_and_an_export_says_that_it_was_not_asked(tmp_path: Path, trace: Path) -> None:
    kept(tmp_path, "bf16", SPACES["bf16"].default.id)
    done = export(tmp_path, FWOPT_VLLM_PYTHON=None)
    assert done.returncode == 0, done.stderr
    assert "not asked whether vLLM takes the files: it is not installed here; set FWOPT_VLLM_PYTHON" in done.stdout
    done = fwopt("tune", str(trace), "--model", "Qwen/Qwen3-30B-A3B", "--op", "vllm_fused_moe", FWOPT_VLLM_PYTHON=None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fwopt: vLLM is not installed beside fwopt; set FWOPT_VLLM_PYTHON to the Python that has it\n"
    )


@pytest.mark.live
@needs_vllm
def test_without_a_gpu_that_vllm_sees_nothing_is_timed(trace: Path) -> None:
    done = fwopt("tune", str(trace), "--model", "Qwen/Qwen3-30B-A3B", "--op", "vllm_fused_moe")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fwopt: --device cuda: ")
    assert done.stderr.count("\n") == 1


def test_a_python_without_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FWOPT_VLLM_PYTHON", sys.executable)
    there = home(["vllm_fused_moe"])
    assert there is not None
    with pytest.raises(InputError, match="vLLM is not installed in this Python"):
        vllm_version(there)


def test_kernels_of_two_pythons_are_not_tuned_in_one_run() -> None:
    with pytest.raises(InputError, match="vllm_fused_moe is timed in vLLM's Python and the others are not"):
        home(["rms_norm", "vllm_fused_moe"])
    assert home(["rms_norm"]) is None


@pytest.mark.live
@needs_vllm
def test_what_vllm_takes_by_itself_is_the_default_to_compare_with() -> None:
    """Its shipped file for Qwen3-30B-A3B on an H200 (benchmarks/data), read by itself; and its rule, where none is."""
    there = vllm_python(VLLM_LOGGING_LEVEL="ERROR")
    assert there is not None
    family = Family("vllm_fused_moe", "bf16", tuple(SHAPE.items()), ("tokens",))
    found = own_choices(family, [(1,), (5,), (100_000,)], "NVIDIA H200", there)
    assert [v.id for v in found] == [
        "block_size_k64-block_size_m16-block_size_n64-group_size_m1-w4-s5",
        "block_size_k128-block_size_m16-block_size_n64-group_size_m16-w4-s2",
        "block_size_k64-block_size_m128-block_size_n256-group_size_m16-w8-s4",
    ]


@pytest.mark.live
@needs_vllm
def test_on_a_processor_the_fallback_is_timed_in_vllms_python_and_not_handed_over(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY))
    store = ("--model", str(tmp_path / "model"), "--hardware", "h200:1", "--device", "cpu", "--out", str(tmp_path))
    done = fwopt("tune", str(trace), *store, "--op", "vllm_fused_moe", "--buckets", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    code = "import triton, torch; print(triton.__version__, torch.__version__)"
    theirs = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [report["timed_on"]["triton"], report["timed_on"]["torch"]] == theirs.stdout.split()
    told = (Path(report["profile"]) / "environment.json").read_text()
    assert '"vllm": "0.' in told
    (family,) = report["families"]
    assert family["fixed"] == {"experts": 4, "top_k": 2, "hidden": 64, "intermediate": 32}
    assert all(bucket["best_s"] > 0 for bucket in family["buckets"])
    triton = report["timed_on"]["triton"]
    done = fwopt("export", "vllm", "--device", Path(report["profile"]).parent.name, "--triton", triton, "--profiles",
                 str(tmp_path), "--out", str(tmp_path / "files"))  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "vllm_fused_moe bf16: timed on a processor, where there is no kernel to choose" in done.stderr


@pytest.mark.parametrize("format", SPACES)
def test_the_reference_holds_what_the_torch_fallback_computes(format: str) -> None:
    shape = {"tokens": 7, "experts": 4, "top_k": 2, "hidden": 256, "intermediate": 128}
    assert differences(VLLM_FUSED_MOE, format, shape, variant=None, seed=0) == []


TINY = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 128,
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "small.csv"
    with gzip.open(data_folder("workloads") / "azure-2023-conv.csv.gz", "rt") as whole:
        path.write_text("".join(next(whole) for _ in range(20)))
    return path
