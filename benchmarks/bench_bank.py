"""Real noise, recorded once: the same work timed again and again on a shared machine, in the order it was done.

    python benchmarks/bench_bank.py kernel 300000     # a matrix product in this process, half a millisecond each
    python benchmarks/bench_bank.py command 7000      # a process started and ended, some tens of milliseconds each

Each writes benchmarks/data/bench/<kind>.json.gz: how long each took, in microseconds.
`benchmarks/bench.py` draws its comparisons from these.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

HOME = Path(__file__).parent / "data" / "bench"


def kernel() -> Callable[[], object]:
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy as np

    a, b = (np.ones((320, 320), np.float32) for _ in range(2))
    return lambda: a @ b


def command() -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-S", "-c", "sum(range(100000))"], check=True)


WORK = {"kernel": kernel, "command": command}


def main(kind: str, count: int) -> None:
    call = WORK[kind]()
    for _ in range(20):
        call()
    begun, took = time.perf_counter(), []
    when, load = datetime.now(UTC), [os.getloadavg()[0]]
    for i in range(count):
        before = time.perf_counter()
        call()
        after = time.perf_counter()
        took.append(round((after - before) * 1e6, 1))
        if i % max(1, count // 20) == 0:
            load.append(round(os.getloadavg()[0], 2))
    header = {
        "kind": kind, "recorded_at": when.isoformat(timespec="seconds"), "machine": platform.platform(),
        "cores": os.cpu_count(), "python": platform.python_version(), "load_1min": load,
        "what": "seconds between repetitions of equal work, other jobs on the machine as they came",
    }  # fmt: skip
    HOME.mkdir(parents=True, exist_ok=True)
    with gzip.open(HOME / f"{kind}.json.gz", "wt", encoding="utf-8", compresslevel=9) as file:
        json.dump({**header, "took_us": took}, file)
    print(f"{kind}: {count} samples in {time.perf_counter() - begun:.0f} s, load {load}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
