"""The main job's figures: what `fwopt tune` finds on recorded traces, how long it takes and what it needs.

    python benchmarks/main_job.py [--write]

Runs the commands below from the repository's root, one after the other, and prints the tables of main_job.md;
`--write` puts them there. Nothing but the repository is used; about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = Path(__file__).with_name("main_job.md")
START, END = "<!-- figures: benchmarks/main_job.py --write -->\n", "<!-- end of figures -->\n"
FWOPT = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]

AZURE = (
    "workloads/azure-2023-conv.csv.gz --rate-scale 16 --model Qwen/Qwen3-8B --hardware h200:8 "
    "--slo 'ttft:p99<2s' --slo 'tpot:p95<50ms' --minimize cost"
)
MOONCAKE = "workloads/mooncake-conversation.jsonl.gz --hardware h200:8 --minimize cost --model "
JOBS = {
    "Azure conversation x16, Qwen3-8B": AZURE,
    "the same, no quality given up": AZURE + " --max-quality-drop 'kl<0.0001'",
    "Mooncake conversation, Qwen3-30B-A3B": MOONCAKE + "Qwen/Qwen3-30B-A3B --slo 'ttft:p90<5s' --slo 'tpot:p90<50ms'",
    "Mooncake conversation x0.25, Llama-3.1-70B": MOONCAKE
    + "meta-llama/Meta-Llama-3.1-70B --rate-scale 0.25 --slo 'ttft:p90<20s' --slo 'tpot:p95<150ms'",
    "Mooncake conversation, Llama-3.1-70B": MOONCAKE
    + "meta-llama/Meta-Llama-3.1-70B --slo 'ttft:p90<5s' --slo 'tpot:p95<50ms'",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """One command: what it took and what it left."""

    seconds: float
    peak_mb: float
    status: int
    last_line: str
    """Of stderr."""
    plan: dict[str, Any]


def tune(arguments: str, out: Path, cache: Path | None = None) -> Ran:
    command = [*FWOPT, "tune", *shlex.split(arguments), "--out", str(out)]
    env = os.environ | ({"FWOPT_CACHE_DIR": str(cache)} if cache else {})
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        errors.seek(0)
        said = errors.read().splitlines()
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    return Ran(seconds, usage.ru_maxrss / 1e3, os.waitstatus_to_exitcode(status), said[-1] if said else "", plan)


def dollars(entry: dict[str, Any] | None) -> str:
    edge = entry and entry["capacity"]
    return f"${edge['usd_per_1m_output_tokens']:.3f} at {edge['rate_scale']:.2f}x" if edge else "-"


def candidate(entry: dict[str, Any] | None) -> str:
    from fwopt.spec.candidate import Candidate

    return Candidate.model_validate(entry["candidate"]).label if entry else "-"


def at_traffic(*entries: dict[str, Any] | None) -> str:
    costs = [entry and entry["evaluation"]["cost"] for entry in entries]
    return " against ".join(f"${cost['usd_per_1m_output_tokens']:.3f}" if cost else "-" for cost in costs)


def row(name: str, ran: Ran) -> str:
    chosen, baseline = ran.plan["chosen"], ran.plan["baseline"]
    margin = "-"
    if chosen and chosen["capacity"] and baseline and baseline["capacity"]:
        here, there = (e["capacity"]["usd_per_1m_output_tokens"] for e in (chosen, baseline))
        margin = f"{abs(1 - here / there):.0%} {'less' if here < there else 'more'}"
    cells = [
        name,
        candidate(chosen),
        dollars(chosen),
        candidate(baseline),
        dollars(baseline),
        margin,
        at_traffic(chosen, baseline),
    ]
    cells += [f"{ran.seconds:.1f} s", f"{ran.peak_mb:.0f} MB"]
    return "| " + " | ".join(cells) + " |"


def start_up(pairs: int = 11) -> tuple[float, float]:
    """Median seconds of `fwopt --help` and of importing typer and rich, run in turns."""

    def seconds(command: list[str]) -> float:
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    commands = [str(Path(sys.executable).with_name("fwopt")), "--help"], [sys.executable, "-c", "import typer, rich"]
    for command in commands:
        seconds(command)
    taken = [[seconds(command) for command in commands] for _ in range(pairs)]
    ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    return ours, theirs


def figures() -> str:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        cold = tune(AZURE, home / "cold", cache=home / "cache")
        runs = {name: tune(arguments, home / str(i)) for i, (name, arguments) in enumerate(JOBS.items())}
    ours, theirs = start_up()
    million = subprocess.run(
        [sys.executable, "benchmarks/inspect_million.py"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("fwopt", "numpy", "numba", "optuna", "typer", "rich"))
    head = ["", "chosen", "$/1M output tokens at SLO capacity", "baseline", "its $/1M", "margin",
            "$/1M at this traffic, against baseline", "wall", "peak memory"]  # fmt: skip
    machine = f"Python {platform.python_version()}, {packages}; {len(os.sched_getaffinity(0))} cores, no GPU"
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip() or 'unknown'}, {machine}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *(row(name, ran) for name, ran in runs.items()),
        "",
        f"The first run ever compiles the simulator: {cold.seconds:.1f} s and {cold.peak_mb:.0f} MB for the first row.",
        "",
        *(f"{name} (exit {ran.status}): `{ran.last_line}`" for name, ran in runs.items() if ran.status),
        "",
        f"`fwopt inspect` on a million requests: {million.stdout.splitlines()[-1]}.",
        "",
        f"`fwopt --help`: {ours * 1e3:.0f} ms, {ours / theirs:.2f} times `import typer, rich` ({theirs * 1e3:.0f} ms).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    found = figures()
    print(found)
    if parser.parse_args().write:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, after = text.split(START)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{START}\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
