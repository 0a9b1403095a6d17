"""fwopt and AISimulate on the same trace, alternating, each as its own process."""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from fwopt.spec.candidate import Candidate
from fwopt.workload import Workload


def spread(values: Sequence[float], digits: int = 4) -> str:
    """min / median / max"""
    return " / ".join(f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))


def write_mooncake(workload: Workload, path: Path) -> None:
    """A workload in Mooncake's format, whole milliseconds; prompts without prefix ids become blocks of their own."""
    following = 0
    with path.open("w", encoding="utf-8") as out:
        for i in range(len(workload)):
            prompt = int(workload.prompt_tokens[i])
            if workload.block_tokens:
                ids = workload.block_ids[workload.block_offsets[i] : workload.block_offsets[i + 1]].tolist()
            else:
                ids = list(range(following, following + -(-prompt // 512)))
                following = ids[-1] + 1
            row = {"timestamp": round(float(workload.arrival_s[i]) * 1000), "input_length": prompt}
            out.write(json.dumps({**row, "output_length": int(workload.output_tokens[i]), "hash_ids": ids}) + "\n")


def aisimulate_config(trace: Path, model: str, candidate: Candidate) -> str:
    batching = candidate.batching
    worker = {
        "parallelism": {"replicas": candidate.parallelism.replicas},
        "scheduler": {"max_batched_tokens": batching.max_num_batched_tokens, "max_sequences": batching.max_num_seqs},
    }
    source = {"type": "trace", "paths": [str(trace)], "format": "mooncake", "block_size": 512}
    engine = {"mode": "aggregated", "model": model, "hardware": "h200_sxm", "backend": "vllm"}
    return json.dumps(
        {
            "traffic": {"source": source, "load": {"type": "trace_timestamps"}},
            "engine": {**engine, "workers": {"aggregated": worker}},
        }
    )


def timed(command: Sequence[str], folder: Path) -> tuple[str, float, float]:
    """(its stdout, wall seconds, CPU seconds) of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_side_by_side(cases: Mapping[str, tuple[Workload, Candidate]], model: str, python: str, repeats: int) -> None:
    """Replay alone (as each tool reports it) and the whole command, alternating."""
    ask = "import importlib.metadata as m; print(m.version('aisimulate'))"
    release = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    print(f"| | fwopt {version('fwopt')} | AISimulate {release} |\n|---|---|---|")
    for title, (workload, candidate) in cases.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            trace, config = folder / "trace.jsonl", folder / "config.yaml"
            write_mooncake(workload, trace)
            config.write_text(aisimulate_config(trace, model, candidate))
            fwopt = [sys.executable, "-m", "fwopt", "simulate", str(trace), "--format", "mooncake", "--model", model]
            fwopt += ["--hardware", "h200:8", "--replicas", str(candidate.parallelism.replicas), "--json"]
            rival = [python, "-m", "aisimulate", "predict", "--config", str(config)]
            rival += ["--output-dir", str(folder / "out"), "--overwrite"]
            ours, theirs = [], []
            for _ in range(repeats):
                out, *spent = timed(fwopt, folder)
                mine = json.loads(out)
                ours.append((mine["requests_finished"], mine["simulate_wall_s"], *spent))
                _, *spent = timed(rival, folder)
                report = json.loads((folder / "out" / "prediction.json").read_text())
                theirs.append((find(report, "completed_requests"), find(report, "wall_time_ms") / 1000, *spent))
        print(f"| **{title}**: requests finished | {ours[0][0]:,} | {theirs[0][0]:,.0f} |")
        for at, label in enumerate(("replay, as reported, wall s", "whole command, wall s", "whole command, CPU s"), 1):
            print(f"| {label} | {spread([x[at] for x in ours], 3)} | {spread([x[at] for x in theirs], 2)} |")


def find(report: object, key: str) -> float:
    """The value of `key` wherever it is in a nested report."""
    if isinstance(report, dict):
        if key in report:
            return float(report[key])
        for value in report.values():
            found = find(value, key)
            if not math.isnan(found):
                return found
    return float("nan")
