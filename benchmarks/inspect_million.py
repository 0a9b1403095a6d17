"""Time and peak memory of `fwopt inspect` on a million requests in fwopt's own format.

    python benchmarks/inspect_million.py [--requests 1000000]

Each request has ids, a session, a model and about six 64-bit prefix hashes; the file lies in the temporary folder
and is removed again. Limits that fwopt promises: 30 s and 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def generate(path: Path, requests: int) -> None:
    rng = np.random.default_rng(7)
    arrivals = np.cumsum(rng.exponential(0.1, requests))
    prompts = rng.integers(100, 4000, requests)
    outputs = rng.integers(1, 800, requests)
    sessions = rng.integers(0, requests // 4 + 1, requests)
    with path.open("w", encoding="utf-8") as out:
        out.write(json.dumps({"schema_version": 1, "name": "million", "block_tokens": 512}) + "\n")
        for i in range(requests):
            count = -(-int(prompts[i]) // 512)
            shared = [hash((int(sessions[i]), k)) & (2**63 - 1) for k in range(count - 1)]
            row = {
                "arrival_s": round(float(arrivals[i]), 6),
                "prompt_tokens": int(prompts[i]),
                "output_tokens": int(outputs[i]),
                "max_tokens": 1024,
                "id": f"request-{i}",
                "session_id": f"session-{sessions[i]}",
                "model": "Qwen/Qwen3-8B",
                "prefix_blocks": [*shared, hash((i, "tail", 1)) & (2**63 - 1)],
            }
            out.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "million.jsonl"
        generate(trace, requests)
        size_mb = trace.stat().st_size / 1e6
        started = time.perf_counter()
        command = [sys.executable, "-c", "from fwopt.cli.app import main; main()", "inspect", str(trace)]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    peak_mb = usage.ru_maxrss / 1e3  # Linux counts kibibytes
    print(f"{requests:,} requests, {size_mb:.0f} MB: {seconds:.1f} s, peak {peak_mb:.0f} MB")
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
