"""Speed of the simulator on whole recorded traces, and beside AISimulate.

    python benchmarks/simulator.py [--repeats 15] [--stream 10000000] [--cold 3] [--aisimulate PYTHON]

Qwen3-8B on H200 with vLLM's defaults and the step times that fwopt ships for vLLM 0.24.0, on the two traces of
`workloads/`. `PYTHON` is an interpreter that has the PyPI package `aisimulate`; it is given the same traces, GPUs and
scheduler limits, in this same run. Prints Markdown tables; what they mean is in benchmarks/simulator.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from beside_aisimulate import spread, time_side_by_side

from fwopt.paths import data_folder
from fwopt.perf.cost import CostModel
from fwopt.perf.grid import StepGrid
from fwopt.perf.memory import kv_capacity
from fwopt.perf.store import load_profile
from fwopt.search.defaults import engine_defaults
from fwopt.sim import SimResult, simulate
from fwopt.sim.stream import simulate_stream
from fwopt.spec.candidate import Candidate, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.outcome import Rejected
from fwopt.targets import load_hardware, load_model
from fwopt.targets.quantization import native_quantization
from fwopt.workload import Workload, read

MODEL, ENGINE = "Qwen/Qwen3-8B", EngineSpec(name="vllm", version="0.24.0")
MOONCAKE, AZURE = (
    data_folder("workloads") / name for name in ("mooncake-conversation.jsonl.gz", "azure-2023-conv.csv.gz")
)
WEEK_S = 7 * 24 * 3600.0
STREAM_REPLICAS = 4
NO_LIMIT = 1 << 20
"""Context length that no request of the traces exceeds."""


@dataclass(frozen=True, slots=True)
class Case:
    """One deployment of `replicas` GPUs that replays one trace."""

    name: str
    workload: Workload
    candidate: Candidate
    grid: StepGrid
    kv_blocks: int
    max_context: int

    def run(self) -> SimResult:
        return simulate(self.workload, self.grid, self.kv_blocks, self.candidate, self.max_context)


def make_cases() -> dict[str, Case]:
    model, hardware = load_model(MODEL), load_hardware("h200:8", None)
    costs = CostModel(model, hardware.device, ENGINE, load_profile(hardware.device, ENGINE))
    traces = {path: read(path).workload for path in (MOONCAKE, AZURE)}

    def case(name: str, trace: Path, replicas: int, max_context: int | None = None) -> Case:
        candidate = Candidate(
            quantization=native_quantization(model),
            parallelism=Parallelism(replicas=replicas),
            batching=engine_defaults(hardware.device),
        )
        fit = kv_capacity(model, hardware.device, candidate, ENGINE)
        if isinstance(fit, Rejected):
            raise SystemExit(fit.reason)
        longest = max_context or model.max_context_tokens
        return Case(name, traces[trace], candidate, costs.grid(candidate), fit.blocks, longest)

    return {
        "mooncake": case("Mooncake conversation, 8 replicas", MOONCAKE, 8),
        "mooncake all": case("the same, context limit lifted", MOONCAKE, 8, NO_LIMIT),
        "azure": case("Azure conv, 1 replica", AZURE, 1),
        "stream": case(f"Azure conv again and again, {STREAM_REPLICAS} replicas", AZURE, STREAM_REPLICAS),
    }


def time_traces(cases: Sequence[Case], repeats: int) -> None:
    """Wall and CPU seconds of `simulate`: arrays built, replayed, and records put in order; the trace is in memory."""
    print("| trace | finished | rejected | steps | wall s (min / median / max) | CPU s (min / median / max) |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        case.run()
        wall, cpu = [], []
        for _ in range(repeats):
            wall_from, cpu_from = time.perf_counter(), time.process_time()
            result = case.run()
            wall.append(time.perf_counter() - wall_from)
            cpu.append(time.process_time() - cpu_from)
        finished = int((result.records.status == 0).sum())
        print(
            f"| {case.name} | {finished:,} | {len(case.workload) - finished:,} | {result.iterations:,} "
            f"| {spread(wall)} | {spread(cpu)} |"
        )


def time_two_threads(case: Case, repeats: int, rounds: int = 10) -> None:
    """Two candidates after each other and at once: how much of the machine's second core is used."""
    tighter = case.candidate.batching.model_copy(update={"max_num_seqs": 256})
    other = replace(case, candidate=case.candidate.model_copy(update={"batching": tighter}))
    jobs: list[Callable[[], None]] = [lambda c=c: [c.run() for _ in range(rounds)] and None for c in (case, other)]
    one, two, gain = [], [], []
    for job in jobs:
        job()
    for _ in range(repeats):
        started = time.perf_counter()
        for job in jobs:
            job()
        one.append((time.perf_counter() - started) / rounds)
        threads = [threading.Thread(target=job) for job in jobs]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        two.append((time.perf_counter() - started) / rounds)
        gain.append(one[-1] / two[-1])
    print("| two candidates on Mooncake | wall s for the pair (min / median / max) |\n|---|---|")
    print(f"| one after the other | {spread(one)} |\n| in two threads | {spread(two)} |")
    print(f"| times as fast | {spread(gain, 2)} |")


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def time_stream(case: Case, requests: int) -> None:
    """A week of traffic: the trace repeated until `requests` are reached, at the rate that makes that a week."""
    base = case.workload
    rounds = -(-requests // len(base))
    period = WEEK_S / rounds
    arrival = base.arrival_s * (period / (base.duration_s * (1 + 1 / len(base))))
    memory: list[float] = []

    def parts() -> Iterator[Workload]:
        for k in range(rounds):
            memory.append(resident_mb())
            yield replace(base, arrival_s=arrival + k * period)

    cpu_from = time.process_time()
    result = simulate_stream(parts(), case.grid, case.kv_blocks, case.candidate, case.max_context)
    cpu, m = time.process_time() - cpu_from, result.metrics
    settled = memory[len(memory) // 20 :]
    print("| streamed | |\n|---|---|")
    print(f"| requests, finished, span | {m.requests:,}, {m.finished:,}, {m.duration_s / 86400:.2f} days |")
    rate = m.requests / m.duration_s
    print(f"| load | {rate:.2f} requests/s on {STREAM_REPLICAS} replicas, {result.mean_batch:.1f} sequences a step |")
    print(f"| engine steps | {result.iterations:,} |")
    print(f"| wall, CPU | {result.wall_s:.1f} s, {cpu:.1f} s ({cpu / m.requests * 1e6:.2f} us a request) |")
    print(f"| memory at the start, after 5 %, at the end | {memory[0]:.0f}, {settled[0]:.0f}, {settled[-1]:.0f} MB |")
    print(f"| highest after the first 5 %, above it | {max(settled) - settled[0]:+.1f} MB |")


FIRST = """
import sys, time
sys.path[:0] = {path!r}
import simulator
case = simulator.make_cases()["azure"]
started = time.perf_counter(); case.run(); print(time.perf_counter() - started)
"""


def time_first_runs(repeats: int) -> None:
    """The first call in a process: with an empty cache it compiles, afterwards it loads what was compiled."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for times in (cold, warm):
                command = [sys.executable, "-c", FIRST.format(path=[str(Path(__file__).parent)])]
                done = subprocess.run(
                    command, env={**os.environ, "FWOPT_CACHE_DIR": folder}, capture_output=True, text=True, check=True
                )
                times.append(float(done.stdout))
    print("| first call in a process (Azure conv) | wall s (min / median / max) |\n|---|---|")
    print(f"| nothing cached: compiles | {spread(cold, 2)} |\n| cached: loads | {spread(warm, 2)} |")


def machine() -> str:
    model = next(
        (x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "unknown: ?"
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    packages = ", ".join(f"{name} {version(name)}" for name in ("fwopt", "numpy", "numba"))
    cpu = model.split(":", 1)[1].strip()
    return f"{cpu}, {os.cpu_count()} cores, load average {load}; Python {sys.version.split()[0]}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--stream", type=int, default=10_000_000, help="requests to stream; 0 leaves it out")
    parser.add_argument("--cold", type=int, default=3, help="repeats of the first call in a process; 0 leaves it out")
    parser.add_argument("--aisimulate", metavar="PYTHON", help="interpreter that has the package aisimulate")
    parser.add_argument("--aisimulate-repeats", type=int, default=3)
    options = parser.parse_args()
    print(machine() + "\n")
    cases = make_cases()
    time_traces([cases["mooncake"], cases["mooncake all"], cases["azure"]], options.repeats)
    print()
    time_two_threads(cases["mooncake"], options.repeats)
    if options.stream:
        print()
        time_stream(cases["stream"], options.stream)
    if options.cold:
        print()
        time_first_runs(options.cold)
    if options.aisimulate:
        print()
        pair = {case.name: (case.workload, case.candidate) for case in (cases["mooncake"], cases["azure"])}
        time_side_by_side(pair, MODEL, options.aisimulate, options.aisimulate_repeats)
    print("\n" + machine())


if __name__ == "__main__":
    main()
