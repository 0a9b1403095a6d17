"""`fwopt bench` as a CI job calls it: real commands, real files, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

RUN = [sys.executable, "-m", "fwopt", "bench"]
PROGRAM = """
import json, os, random, sys
factor = float(os.environ.get("FACTOR", "1"))
noise = float(os.environ.get("NOISE", "0.002"))
if os.environ.get("CRASH"):
    sys.exit("cannot load model: CRASH is set")
print("loading ...")
samples = [factor * random.gauss(1, noise) ** 2 for _ in range(10)]
print(json.dumps({"samples": {"latency": samples}, "parts": {"operator:decode": factor, "queueing": 0.1}}))
"""


def fwopt(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def write_suite(folder: Path, *, arms: dict | None = None, benches: list | None = None, **rules: object) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    command = {
        "name": "steps", "kind": "command", "command": [sys.executable, "-S", "program.py"], "output": "json",
        "repeat": 1, "metrics": [{"series": "latency", "statistic": "p50"}, {"series": "latency", "statistic": "p90"}],
    }  # fmt: skip
    suite = {
        "name": "nightly",
        "benches": benches or [command],
        "arms": arms if arms is not None else {"base": {}, "head": {}},
        "rules": {"min_effect": 0.05, "max_blocks": 10, **rules},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def arms(**head: str) -> dict:
    return {"base": {}, "head": {"env": head}}


def test_equal_builds_pass_and_every_output_is_written(tmp_path: Path) -> None:
    write_suite(tmp_path)
    done = fwopt("run", "suite.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "base.json", "head.json", "comparison.json", "junit.xml", "summary.md", "github-action-benchmark.json",
        "bencher.json",
    }  # fmt: skip


def test_a_slower_build_fails_explained_and_compares_the_same_from_its_files(tmp_path: Path) -> None:
    write_suite(tmp_path, arms=arms(FACTOR="1.2"))
    done = fwopt("run", "suite.yaml", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "fail"
    assert {m["verdict"] for m in found["metrics"]} == {"fail"}
    assert found["explanation"]["steps"][0]["part"] == "operator:decode"
    again = fwopt("compare", "out/base.json", "out/head.json", "--json", cwd=tmp_path)
    assert again.returncode == 1
    assert json.loads(again.stdout)["metrics"] == found["metrics"]
    generous = fwopt("compare", "out/base.json", "out/head.json", "--min-effect", "50%", cwd=tmp_path)
    assert generous.returncode == 0, generous.stdout


def test_sampling_stops_when_the_verdict_is_there(tmp_path: Path) -> None:
    write_suite(tmp_path, max_blocks=100)
    assert fwopt("run", "suite.yaml", "--out", "out", cwd=tmp_path).returncode == 0
    runs = json.loads((tmp_path / "out/head.json").read_text())["benches"][0]["runs"]
    assert {run["block"] for run in runs} == set(range(6))


def test_what_cannot_be_told_within_the_blocks_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    noisy = {"env": {"NOISE": "0.3"}}
    write_suite(tmp_path, arms={"base": noisy, "head": noisy}, max_blocks=6)
    done = fwopt("run", "suite.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    compare = ("compare", "out/base.json", "out/head.json", "--inconclusive-exit")
    assert fwopt(*compare, 0, cwd=tmp_path).returncode == 0


def test_the_minimum_effect_is_measured_where_it_is_not_stated(tmp_path: Path) -> None:
    write_suite(tmp_path, min_effect=None)
    assert fwopt("run", "suite.yaml", "--out", "out", cwd=tmp_path).returncode == 0
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert {m["min_effect_from"] for m in found["metrics"]} == {"A/A"}


def test_a_build_that_crashes_fails_with_its_last_words(tmp_path: Path) -> None:
    write_suite(tmp_path, arms=arms(CRASH="1"))
    done = fwopt("run", "suite.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot load model: CRASH is set" in done.stdout
    single = write_suite(tmp_path, arms={"head": {"env": {"CRASH": "1"}}})
    done = fwopt("run", single, "--out", "one", cwd=tmp_path)
    assert done.returncode == 1
    assert "no samples of steps latency:p50" in done.stderr


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    write = f"pathlib.Path({str(marker)!r}).write_text(str(time.time()))"
    child = f"import time, pathlib\nwhile True: {write}; time.sleep(0.02)"
    (tmp_path / "hang.py").write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])")
    bench = {"name": "hang", "kind": "command", "command": [sys.executable, "hang.py"], "timeout_s": 1, "repeat": 1}
    write_suite(tmp_path, benches=[bench], warm_up_runs=0)
    done = fwopt("run", "suite.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "no end within 1 s" in done.stdout
    before = marker.read_text()
    time.sleep(0.2)
    assert marker.read_text() == before


def as_fast(session: Path, *, as_in: Path) -> None:
    """As if both sessions had seen the machine equally fast: what the probes find is not the build's."""
    seconds = json.loads(as_in.read_text())["probes"][0]["seconds"]
    found = json.loads(session.read_text())
    found["probes"] = [{**probe, "seconds": seconds} for probe in found["probes"]]
    session.write_text(json.dumps(found))


def test_baselines_are_kept_promoted_and_held_against(tmp_path: Path) -> None:
    write_suite(tmp_path, arms={"head": {}}, aa_blocks=6, history_sessions=3)
    for i in range(4):
        assert fwopt("run", "suite.yaml", "--out", f"o{i}", "--commit", f"c{i}", cwd=tmp_path).returncode == 0
        as_fast(tmp_path / f"o{i}/head.json", as_in=tmp_path / "o0/head.json")
        promote = ["--promote"] if i == 2 else []
        done = fwopt("baseline", "save", f"o{i}/head.json", "--store", "store", *promote, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert fwopt("baseline", "list", "--store", "store", cwd=tmp_path).stdout.count("*") == 1
    assert fwopt("compare", "store", "o3/head.json", cwd=tmp_path).returncode == 0
    slow = write_suite(tmp_path, arms={"head": {"env": {"FACTOR": "3"}}}, aa_blocks=6, history_sessions=3)
    done = fwopt("run", slow, "--out", "slow", "--baseline", "store", "--across", "config", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    refused = fwopt("compare", "store", "slow/head.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--across config" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert fwopt("history", "--store", "store", cwd=tmp_path).stdout.count("4 sessions") == 2
    assert fwopt("report", "--store", "store", "--out", "trend.html", cwd=tmp_path).returncode == 0
    (kept,) = tmp_path.glob("store/nightly/*/*-c2.json")
    kept.write_text(kept.read_text()[:1000])
    broken = fwopt("compare", "store", "o3/head.json", cwd=tmp_path)
    assert broken.returncode == 2
    assert "corrupt" in broken.stderr


BAD = {
    "no such suite": ("absent.yaml", None, "cannot be read"),
    "not YAML": ("s.yaml", "name: [", "is not YAML"),
    "a key given twice": ("s.yaml", "name: a\nbenches: []\nname: b", "key 'name' is given twice"),
    "an unknown kind": ("s.yaml", "name: a\nbenches: [{name: b, kind: magic}]", "kind"),
    "two of one name": (
        "s.yaml",
        "name: a\nbenches: [{name: b, kind: command, command: x}, {name: b, kind: command, command: y}]",
        "got 'b' twice",
    ),
    "JSON without metrics": (
        "s.yaml",
        "name: a\nbenches: [{name: b, kind: command, command: x, output: json}]",
        "name its metrics",
    ),
    "a statistic that is none": (
        "s.yaml",
        "name: a\nbenches: [{name: b, kind: command, command: x, metrics: [{series: wall, statistic: p200}]}]",
        "p1..p99.99",
    ),
    "an operator that is none": (
        "s.yaml",
        "name: a\nbenches: [{name: b, kind: kernels, operator: rmsnorm, format: bf16, shape: {m: 1}}]",
        "nearest: rms_norm",
    ),
    "a live bench without a server": (
        "s.yaml",
        "name: a\nbenches: [{name: b, kind: live, trace: t.jsonl}]",
        "needs `url`",
    ),
    "a folder that is no run": (".", None, "plan.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_suite_is_one_line_and_exit_2(name: str, tmp_path: Path) -> None:
    file, text, words = BAD[name]
    if text is not None:
        (tmp_path / file).write_text(text)
    done = fwopt("run", file, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_suite_with_a_base_of_its_own_takes_no_stored_one(tmp_path: Path) -> None:
    write_suite(tmp_path)
    done = fwopt("run", "suite.yaml", "--baseline", "store", cwd=tmp_path)
    assert done.returncode == 2
    assert "a suite of one arm" in done.stderr


LINES = "".join(
    json.dumps({"arrival_s": i * 0.2, "prompt_tokens": 400, "output_tokens": 60}) + "\n" for i in range(200)
)


def test_a_simulated_bench_tells_one_configuration_from_another(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(LINES)
    (tmp_path / "new.yaml").write_text("max-num-seqs: 1\n")
    bench = {
        "name": "conv", "kind": "simulated", "trace": "t.jsonl", "model": "Qwen/Qwen3-8B", "hardware": "h200:1",
    }  # fmt: skip
    write_suite(tmp_path, benches=[bench], arms={"base": {}, "head": {}})
    done = fwopt("run", "suite.yaml", "--out", "same", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {m["effect"] for m in json.loads(done.stdout)["metrics"]} == {0.0}
    write_suite(tmp_path, benches=[bench], arms={"base": {}, "head": {"config": "new.yaml"}})
    done = fwopt("run", "suite.yaml", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["design"] == "exact"
    assert found["explanation"]["conv"][0]["kind"] == "queueing"
    stored = fwopt("compare", "same/head.json", "out/head.json", cwd=tmp_path)
    assert stored.returncode == 1, stored.stdout + stored.stderr


def test_a_run_folder_is_a_suite(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(LINES)
    tune = [sys.executable, "-m", "fwopt", "tune", "t.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h200:2"]
    done = subprocess.run([*tune, "--trials", "2", "--out", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for out in ("a", "b"):
        assert fwopt("run", "run", "--out", out, cwd=tmp_path).returncode == 0
    assert fwopt("compare", "a/head.json", "b/head.json", cwd=tmp_path).returncode == 0


def test_a_kernel_is_timed_in_a_process_of_its_arm(tmp_path: Path) -> None:
    bench = {
        "name": "norm", "kind": "kernels", "operator": "rms_norm", "format": "bf16",
        "shape": {"rows": 4, "columns": 256}, "repeat": 3,
    }  # fmt: skip
    write_suite(tmp_path, benches=[bench], min_blocks=5, max_blocks=5, warm_up_runs=0)
    done = fwopt("run", "suite.yaml", "--out", "out", "--min-effect", "900%", "--budget", "1", cwd=tmp_path)
    runs = json.loads((tmp_path / "out/head.json").read_text())["benches"][0]["runs"]
    assert done.returncode in (0, 3), done.stderr
    assert len(runs[0]["samples"]["call"]) == 3, runs[0]["problem"]
    assert "operator:rms_norm" in runs[0]["parts"]
