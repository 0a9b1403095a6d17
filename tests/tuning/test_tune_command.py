"""`fwopt kernels tune` on this machine's processor, for real: torch fallbacks through the whole path."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fwopt.paths import data_folder

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

CODE = "from fwopt.cli.app import main; main()"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "small.csv"
    with gzip.open(data_folder("workloads") / "azure-2023-conv.csv.gz", "rt") as whole:
        path.write_text("".join(next(whole) for _ in range(40)))
    return path


def fwopt(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, "kernels", "tune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_fallbacks_are_timed_at_the_shapes_of_the_trace_and_kept(trace: Path, tmp_path: Path) -> None:
    done = fwopt(
        str(trace), "--model", "Qwen/Qwen3-0.6B", "--hardware", "h200:1", "--device", "cpu", "--budget", "10m",
        "--json", "--op", "rms_norm", "--op", "silu_mul", "--op", "rope_cache", "--buckets", "2",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {f["operator"] for f in report["families"]} >= {"rms_norm", "silu_mul", "rope_cache"}
    for family in report["families"]:
        assert 1 <= len(family["buckets"]) <= 4
        for bucket in family["buckets"]:
            assert bucket["variant"] == "torch"
            assert bucket["default_s"] == bucket["best_s"] > 0
    calls = sum(b["calls_a_step"] for f in report["families"] if f["operator"] == "rms_norm" for b in f["buckets"])
    assert calls == pytest.approx(2 * 28)
    assert list(Path(report["profile"]).glob("rms_norm.parquet"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "soon"), "--budget must be a time above zero, for example 90s or 10m, got 'soon'"),
        (("--op", "rmsnorm"), "unknown operator 'rmsnorm'; nearest: rms_norm"),
        (("--hardware", "h200:1"), "--device cuda: "),
        (
            ("--hardware", "h200:1", "--device", "cpu", "--op", "lora"),
            "nothing to tune: lora: no engine is simulated with adapters, so no step calls it",
        ),
    ],
)
def test_bad_input_is_one_line(trace: Path, arguments: tuple[str, ...], words: str) -> None:
    done = fwopt(str(trace), "--model", "Qwen/Qwen3-0.6B", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
