"""`benchmarks/gpu.py`: all its stages on a processor, so that a GPU, once there, finds a script that is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Threads that wait for each other take a multiple of the time on cores that are busy."""
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    command = [
        sys.executable,
        str(SCRIPT),
        "--device",
        "cpu",
        "--out",
        str(out),
        "--work",
        str(work),
        "--minutes",
        "30",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, command


def results(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.slow
def test_every_stage_leaves_what_it_found(dry: tuple[Path, list[str]]) -> None:
    out, _ = dry
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["stages"].values()) == {"ok"}
    assert list(summary["stages"]) == [
        "machine", "first", "check", "correct", "time", "search", "profile", "tune", "moe", "vllm", "plan",
    ]  # fmt: skip
    assert summary["wrong"] == []
    # a lent machine gives back eight files at most
    assert {p.name for p in out.iterdir()} == {"results.json", "summary.json", "store.tar.gz"}
    found = results(out)
    for stage in ("first", "correct"):
        assert 0 < found[stage]["asked"] == found[stage]["of"]
    assert {"rms_norm", "silu_mul", "rope_cache"} <= {row["operator"] for row in found["time"]["rows"]}
    assert all(row["best_s"] > 0 for row in found["time"]["rows"])
    timed = {row["what"] for row in found["time"]["baselines"] if "s" in row}
    assert timed >= {"cublas bf16", "torch sdpa", "torch sort and draw", "cublas lora"}
    assert found["search"]["timed"] == 3
    assert found["search"]["over_best"] >= 1
    assert all(row["shipped_s"] > 0 and row["best_s"] > 0 for row in found["moe"]["rows"])
    assert {"tuned", "default"} == set(found["plan"]["best_e2e_s"])
    assert found["plan"]["kernels"] > 0
    said = [verdict["what"] for verdict in summary["must_show"]]
    assert any("over the best" in what for what in said)
    assert any("vLLM's shipped config" in what for what in said)


@pytest.mark.slow
def test_what_is_there_is_not_made_again_and_a_failed_stage_leaves_the_rest(dry: tuple[Path, list[str]]) -> None:
    out, command = dry
    before = results(out)
    planted = {**before, "correct": {"error": "the process died"}, "check": {"error": "planted"}}
    (out / "results.json").write_text(json.dumps(planted))
    only = ("--only", "correct", "--only", "machine")
    done = subprocess.run([*command, *only], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "needs stage check" in done.stdout
    assert "made before" in done.stdout
    after = results(out)
    assert {s: r for s, r in after.items() if s != "correct"} == {s: r for s, r in planted.items() if s != "correct"}


def test_vllms_own_choice_of_its_shipped_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry of the nearest count, with the numbers of the file that vLLM ships for the H200."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from gpu_stages.moe import entry

    assert entry(1).id == "block_size_k64-block_size_m16-block_size_n64-group_size_m1-w4-s5"
    assert entry(5).id == "block_size_k128-block_size_m16-block_size_n64-group_size_m16-w4-s2"
    assert entry(100_000).id == "block_size_k64-block_size_m128-block_size_n256-group_size_m16-w8-s4"
