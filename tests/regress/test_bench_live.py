"""Live benches: real HTTP, real replays, a stub for a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.alone

STUB = Path(__file__).parents[1] / "live" / "stub.py"


@contextmanager
def server(**settings: object) -> Iterator[str]:
    settings = {"owner": "vllm"} | settings
    process = subprocess.Popen([sys.executable, STUB, "0", json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def bench(folder: Path, base: str, head: str) -> tuple[int, dict]:
    lines = [{"arrival_s": i * 0.01, "prompt_tokens": 40, "output_tokens": 6} for i in range(12)]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = {
        "name": "served",
        "arms": {"base": {"url": base}, "head": {"url": head}},
        "benches": [
            {
                "name": "chat", "kind": "live", "trace": "t.jsonl", "concurrency": 4,
                "metrics": [{"series": "tpot", "statistic": "p50"}, {"series": "throughput", "statistic": "mean",
                             "better": "higher", "unit": "tokens/s"}],
            }
        ],
        "rules": {"min_effect": 0.5, "max_blocks": 10, "warm_up_runs": 1},
    }  # fmt: skip
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    command = [sys.executable, "-m", "fwopt", "bench", "run", "suite.yaml", "--out", "out", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1, 3), done.stderr
    problems = [run["problem"] or "" for arm in ("base", "head") for run in runs_of(folder, arm)]
    if any("lag" in problem for problem in problems):
        pytest.skip("this machine is too busy for the client to keep time, so its runs do not count")
    return done.returncode, json.loads(done.stdout)


def runs_of(folder: Path, arm: str) -> list[dict]:
    return json.loads((folder / f"out/{arm}.json").read_text())["benches"][0]["runs"]


def test_a_slower_server_fails(tmp_path: Path) -> None:
    with server(gap_s=0.01) as base, server(gap_s=0.06) as head:
        code, found = bench(tmp_path, base, head)
    assert code == 1
    assert {m["metric"]: m["verdict"] for m in found["metrics"]} == {"tpot:p50": "fail", "throughput:mean": "fail"}
    assert len(runs_of(tmp_path, "head")[0]["samples"]["tpot"]) == 12
    assert found["explanation"]["chat"][0]["part"] == "other:from the first token"


def test_a_server_that_drops_requests_fails_for_that(tmp_path: Path) -> None:
    with server(gap_s=0.005) as base, server(gap_s=0.005, fault="500", fault_every=3) as head:
        code, found = bench(tmp_path, base, head)
    assert code == 1
    assert {m["metric"]: m["verdict"] for m in found["metrics"]}["lost"] == "fail"


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2}) + "\n")
    (tmp_path / "s.yaml").write_text(
        "name: a\nbenches: [{name: b, kind: live, trace: t.jsonl}]\narms: {head: {url: 'http://127.0.0.1:9'}}"
    )
    command = [sys.executable, "-m", "fwopt", "bench", "run", "s.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
