"""`benchmarks/gpu.py`: all its stages on a processor, so that a GPU, once there, finds a script that is whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

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
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, command


@pytest.mark.slow
def test_every_stage_leaves_its_file(dry: tuple[Path, list[str]]) -> None:
    out, _ = dry
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["stages"].values()) == {"ok"}
    assert summary["wrong"] == []
    assert {p.name for p in out.iterdir()} == {
        *(f"{stage}.json" for stage in summary["stages"]), "summary.json", "store.tar.gz",
    }  # fmt: skip
    assert len(list(out.iterdir())) <= 8  # what a lent machine gives back
    rows = json.loads((out / "time.json").read_text())["rows"]
    assert {"rms_norm", "silu_mul", "rope_cache"} <= {row["operator"] for row in rows}
    assert all(row["best_s"] > 0 for row in rows)


@pytest.mark.slow
def test_what_is_there_is_not_made_again_and_a_failed_stage_leaves_the_rest(dry: tuple[Path, list[str]]) -> None:
    out, command = dry
    before = (out / "machine.json").stat().st_mtime_ns
    (out / "correct.json").write_text('{"error": "the process died"}')
    (out / "check.json").write_text('{"error": "planted"}')
    done = subprocess.run([*command, "--only", "correct"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "needs stage check" in done.stdout
    assert (out / "machine.json").stat().st_mtime_ns == before
