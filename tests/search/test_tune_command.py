"""The command as a user runs it: real readers, targets, cost model and simulator."""

import json
import os
import random
import re
import subprocess
import sys

import pytest

from fwopt.report.verdict import verdict
from fwopt.search.run_folder import read_plan

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    draw, now, lines = random.Random(3), 0.0, []
    for _ in range(400):
        now += draw.expovariate(20)
        lines.append(
            json.dumps(
                {
                    "arrival_s": now,
                    "prompt_tokens": draw.randint(50, 2000),
                    "output_tokens": draw.randint(1, 200),
                    "model": "Qwen/Qwen3-8B",
                }
            )
        )
    path = tmp_path_factory.mktemp("trace") / "small.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def fwopt(*arguments, cwd):
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(trace, tmp_path_factory):
    """The bare call, but for the hardware, on a machine without a GPU."""
    home = tmp_path_factory.mktemp("home")
    done = fwopt("tune", trace, "--hardware", "h200:2", "--trials", 30, "--out", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "run", done


def test_the_bare_call_writes_plan_evidence_and_files(run):
    folder, done = run
    plan = read_plan(folder)
    assert plan.status == "complete"
    assert plan.chosen.evaluation.feasible
    assert plan.baseline.candidate.batching.max_num_seqs == 1024
    assert plan.baseline.capacity is not None
    assert any("no objective given" in note for note in plan.notes)
    assert {p.what for p in plan.inputs} == {"workload", "model config", "profile", "calibration"}
    for name in ("inputs.json", "trials.jsonl", "report.md", "report.html", "deploy/vllm/config.yaml"):
        assert (folder / name).is_file()
    assert plan.chosen.candidate.label in " ".join(done.stdout.split())


def test_the_plan_says_what_slightly_longer_steps_would_do(run):
    plan = read_plan(run[0])
    chosen = plan.chosen
    assert chosen.if_slower.factor == 1.05
    for name in ("ttft", "tpot", "e2e"):
        promised, slower = getattr(chosen.evaluation.metrics, name), getattr(chosen.if_slower.evaluation.metrics, name)
        assert slower.mean_s > 1.02 * promised.mean_s
    assert "drift" in dict(verdict(plan).points)


def test_resume_recalls_everything_and_goes_on(run, trace):
    folder, _ = run
    before = (folder / "trials.jsonl").read_bytes()
    done = fwopt("tune", "--resume", folder, "--json", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chosen"] == json.loads((folder / "plan.json").read_text())["chosen"]
    assert (folder / "trials.jsonl").read_bytes() == before


def test_resume_refuses_other_inputs(run, tmp_path, trace):
    folder, _ = run
    refused = fwopt("tune", "--resume", folder, "--slo", "ttft:p99<1s", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "leave out --slo" in refused.stderr
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(trace.read_text().splitlines(keepends=True)[:100]))
    changed = fwopt("tune", shorter, "--resume", folder, cwd=tmp_path)
    assert changed.returncode == 2
    assert "the workload changed" in changed.stderr


def test_capacity_of_a_run_repeats_what_the_plan_says(run):
    folder, _ = run
    done = fwopt("capacity", folder, "--json", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    plan = read_plan(folder)
    found = {m["name"]: m["capacity"] for m in json.loads(done.stdout)}
    for name in ("baseline", "chosen"):
        assert found[name] == json.loads(getattr(plan, name).capacity.model_dump_json())


def test_the_emitted_config_replays_to_exactly_what_the_plan_promises(run, trace):
    folder, _ = run
    plan = read_plan(folder)
    slos = [word for slo in plan.objective.slos for word in ("--slo", str(slo))]
    done = fwopt("simulate", trace, "--config", folder / "deploy/vllm/config.yaml", "--hardware", "h200:2", *slos,
                 "--json", cwd=folder.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, promised = json.loads(done.stdout), json.loads(plan.chosen.model_dump_json())
    assert found["candidate"] == promised["candidate"]
    for part in ("metrics", "slos", "cost", "provenance", "peak_kv_blocks", "mean_batch"):
        assert found["evaluation"][part] == promised["evaluation"][part], part


def test_more_gpus_than_one_machine_has(trace, tmp_path):
    done = fwopt("tune", trace, "--hardware", "h200:16", "--trials", 2, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_layout_that_nobody_timed_falls_and_the_search_goes_on(trace, tmp_path):
    (tmp_path / "fwopt.yaml").write_text("hardware: h200:16\nsearch: {tp: [8, 16], quantizations: [bf16]}\ntrials: 4\n")
    done = fwopt("tune", trace, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(r.rung == "unmeasured" and "16 GPUs" in r.reason for r in read_plan(tmp_path / "run").rejected)


def test_the_emitted_config_is_a_baseline_for_the_next_run(run, trace, tmp_path):
    folder, _ = run
    done = fwopt(
        "tune", trace, "--hardware", "h200:2", "--trials", 10, "--baseline", folder / "deploy/vllm/config.yaml",
        "--out", "next", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = read_plan(tmp_path / "next")
    assert plan.baseline_kind == "given"
    assert plan.baseline.candidate == read_plan(folder).chosen.candidate


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hardware", "h200:2", "--slo", "ttft<2s"], "names no quantile"),
        (["--hardware", "h2000:2"], "unknown GPU"),
        (["--hardware", "h200:2", "--model", "Qwen/Qwen3-9B"], "unknown model"),
        (["--hardware", "h200:2", "--only-model", "other"], "unknown model in the trace"),
        (["--hardware", "h200:1", "--model", "deepseek-ai/DeepSeek-V3"], "fits on no layout.*GiB.*--hardware h200:8"),
        (["--hardware", "h200:2", "--minimize", "throughput"], "can only be maximized"),
        (["--hardware", "h200:2", "--baseline", "absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(trace, tmp_path, arguments, words):
    done = fwopt("tune", trace, *arguments, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(words, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_limits_that_nothing_meets_leave_a_valid_run_and_exit_2(trace, tmp_path):
    done = fwopt("tune", trace, "--hardware", "h200:1", "--trials", 5, "--slo", "tpot:p99<0.5ms", "--out", "run",
                 cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    plan = read_plan(tmp_path / "run")
    assert plan.status == "infeasible"
    assert plan.nearest_miss is not None
    assert any(r.rung == "bound" for r in plan.rejected)
    assert "relax" in done.stderr


def test_a_folder_that_cannot_be_made_is_one_line(trace, tmp_path):
    (tmp_path / "file").write_text("")
    done = fwopt("tune", trace, "--hardware", "h200:2", "--out", "file/run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no folders, not even from root")
def test_a_folder_where_nothing_can_be_written_is_one_line(trace, tmp_path):
    done = fwopt("tune", trace, "--hardware", "h200:2", "--out", "/proc/run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "/proc/run cannot be written" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_refused_before_any_work(trace, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    done = fwopt("tune", trace, "--hardware", "h200:2", "--out", "locked/run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not writable" in done.stderr
