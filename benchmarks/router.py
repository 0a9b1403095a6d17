"""Requests that follow their prefixes, on real servers: the cached share of prompts, simulated and measured.

python benchmarks/router.py --model FOLDER --out FOLDER [--requests 150] [--rate-scale 0.25]

Mooncake's conversations in small (every length divided, so prefixes are shared as they were) go through the router that
`fwopt tune` exports, to two reference engines, once a policy. Both sides begin with nothing cached.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FWOPT = str(Path(sys.executable).with_name("fwopt"))
TRACE = ROOT / "workloads" / "mooncake-conversation.jsonl.gz"
DIVIDED = 32
"""512 tokens a block of the trace become 16, the engine's own."""
POLICIES = ("least_requests", "cache_aware")
PORTS = (8001, 8002)
"""Of the replicas that the exported router knows; it listens on 8000 itself."""


def small(path: Path, requests: int) -> None:
    lines = [json.dumps({"schema_version": 1, "name": f"mooncake-conversation/{DIVIDED}", "block_tokens": 16})]
    with gzip.open(TRACE, "rt") as rows:
        for _, row in zip(range(requests), map(json.loads, rows), strict=False):
            lines.append(
                json.dumps(
                    {
                        "arrival_s": row["timestamp"] / 1000,
                        "prompt_tokens": -(-row["input_length"] // DIVIDED),
                        "output_tokens": max(2, row["output_length"] // DIVIDED),
                        "prefix_blocks": row["hash_ids"],
                    }
                )
            )
    path.write_text("\n".join(lines) + "\n")


def exported(folder: Path, trace: Path, scale: str, policy: str) -> Path:
    """A plan of two replicas behind a router of this policy; of it, only the router is started."""
    settings = folder / f"{policy}.yaml"
    settings.write_text(f"search:\n  replicas: [2]\n  tp: [1]\n  router: [{policy}]\n  prefix_caching: [true]\n")
    run = folder / policy
    command = [FWOPT, "tune", str(trace), "--model", "Qwen/Qwen3-8B", "--hardware", "h200:2", "--config", str(settings)]
    command += ["--rate-scale", scale, "--slo", "ttft:p99<60s", "--minimize", "cost", "--out", str(run), "--force"]
    subprocess.run(command, check=True, capture_output=True)
    return run


@contextmanager
def running(command: list[str], log: Path, answers: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(answers, timeout=5).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(f"{command[0]} ended: {log.read_text()[-500:]}") from None
                    time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def engine(model: str, port: int, folder: Path) -> list[str]:
    return [FWOPT, "serve", "--model", model, "--served-model-name", "m", "--port", str(port), "--threads", "1",
            "--kv-cache-gib", "2", "--records", str(folder / f"steps-{port}.jsonl")]  # fmt: skip


def measured(policy: str, run: Path, model: str, trace: Path, scale: str, folder: Path) -> tuple[float, int]:
    """Share of the prompts that replicas found cached, by their own account; requests that were served."""
    router = ["env", f"ROUTER_PYTHON={sys.executable}", "bash", str(run / "deploy" / "vllm" / "run.sh"), "router"]
    first, second = (
        running(engine(model, port, folder), folder / f"{port}.log", f"http://127.0.0.1:{port}/health")
        for port in PORTS
    )
    with first, second, running(router, folder / "router.log", "http://127.0.0.1:8000/v1/models"):
        out = folder / f"{policy}.jsonl.gz"
        replay = [FWOPT, "replay", str(trace), "--url", "http://127.0.0.1:8000", "--model", "m", "--engine", "fwopt"]
        replay += ["--api", "chat", "--rate-scale", scale, "--cache", "as is", "--out", str(out), "--force"]
        replay += ["--tokenizer", model, "--max-context", "8192"]
        subprocess.run(replay, stdout=subprocess.DEVNULL)  # exit 1: the client was late, which no share depends on
    with gzip.open(out, "rt") as lines:
        served = [row for row in map(json.loads, lines) if row.get("status") == 0]
    return sum(row["cached_usage"] for row in served) / sum(row["prompt_usage"] for row in served), len(served)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rate-scale", default="0.25")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    trace = asked.out / "trace.jsonl"
    small(trace, asked.requests)
    for policy in POLICIES:
        run = exported(asked.out, trace, asked.rate_scale, policy)
        plan = json.loads((run / "plan.json").read_text())
        metrics = plan["chosen"]["evaluation"]["metrics"]
        simulated = metrics["cached_prompt_tokens"] / metrics["prompt_tokens"]
        share, count = measured(policy, run, asked.model, trace, asked.rate_scale, asked.out)
        print(
            f"{policy:15} cached, of prompt tokens: simulated {simulated:.1%}, measured {share:.1%} ({count} requests)"
        )


if __name__ == "__main__":
    main()
