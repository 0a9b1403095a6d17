"""`fwopt tune` on conversations: requests sent after their prefixes serve more of them, and are deployed so."""

import json
import random
import subprocess
import sys

import pytest

from fwopt.search.run_folder import read_plan

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]
LIMITS = ("--slo", "ttft:p95<1s", "--minimize", "cost", "--model", "Qwen/Qwen3-8B", "--hardware", "h200:4")


def fwopt(*arguments, cwd):
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    """120 of 6 turns, each turn's prompt the one before and 2,000 tokens more."""
    draw, rows = random.Random(5), []
    for c in range(120):
        now, ids = draw.uniform(0, 60), []
        for _ in range(6):
            ids = ids + [c * 1000 + len(ids) + k for k in range(4)]
            row = {"arrival_s": now, "prompt_tokens": 512 * len(ids), "output_tokens": 60, "prefix_blocks": ids}
            rows.append(row)
            now += draw.uniform(3, 9)
    rows.sort(key=lambda row: row["arrival_s"])
    path = tmp_path_factory.mktemp("trace") / "conversations.jsonl"
    lines = [{"schema_version": 1, "name": "conversations", "block_tokens": 512}, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_plan_follows_prefixes_and_its_files_do(conversations, tmp_path):
    settings = tmp_path / "narrow.yaml"
    settings.write_text("search: {quantizations: [bf16], kv_dtypes: [bf16], tp: [1], max_num_seqs: [256], "
                        "max_num_batched_tokens: [8192], gpu_memory_utilization: [0.92]}\n")  # fmt: skip
    done = fwopt("tune", conversations, *LIMITS, "--rate-scale", 4, "--config", settings, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = read_plan(tmp_path / "run")
    assert plan.chosen.candidate.router == "cache_aware"
    assert "sglang-router==0.3.2" in " ".join(plan.notes)
    files = tmp_path / "run" / "deploy" / "vllm"
    assert not (files / "nginx.conf").exists()
    assert "FWOPT_ROUTER_PACKAGE=sglang-router==0.3.2\n" in (files / "fwopt.env").read_text()

    def cached(*further: str) -> int:
        case = ("--hardware", "h200:4", "--rate-scale", 4, "--config", files / "config.yaml", "--json")
        said = json.loads(fwopt("simulate", conversations, *case, *further, cwd=tmp_path).stdout)
        return said["evaluation"]["metrics"]["cached_prompt_tokens"]

    assert cached() == plan.chosen.evaluation.metrics.cached_prompt_tokens
    assert cached("--router", "least_requests") < 0.7 * cached()


def test_prefixes_that_the_trace_does_not_record_cannot_be_followed(conversations, tmp_path):
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in conversations.read_text().splitlines()[1:]]
    keys = ("arrival_s", "prompt_tokens", "output_tokens")
    bare.write_text("".join(json.dumps({k: row[k] for k in keys}) + "\n" for row in rows))
    settings = tmp_path / "fwopt.yaml"
    settings.write_text("search: {router: [cache_aware]}\n")
    done = fwopt("tune", bare, *LIMITS, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fwopt: search.router cache_aware follows prefixes, and this trace")
    assert not (tmp_path / "run").exists()
