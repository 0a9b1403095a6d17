"""The very load that a row describes, as a workload."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fwopt.score.case import Load
from fwopt.workload.columns import Workload

SHAREGPT_SIGMA = {"prompt": 1.25, "output": 0.95}
"""Log-normal widths of ShareGPT V3 lengths as benchmark scripts filter them (prompt below 1,024 tokens, prompt and
output below 2,048): a stated assumption; only the means are in the tables."""
SHAREGPT_MOST = 1024


def make_workload(load: Load, seed_text: str) -> Workload:
    """Lengths and arrivals; the same row always gives the same ones."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8]))
    n = load.requests
    prompt = _lengths(rng, n, load.prompt_tokens, load.spread, SHAREGPT_SIGMA["prompt"])
    output = _lengths(rng, n, load.output_tokens, load.spread, SHAREGPT_SIGMA["output"])
    arrival = np.zeros(n)
    if load.kind == "poisson":
        assert load.rate_per_s is not None
        arrival = np.cumsum(rng.exponential(1 / load.rate_per_s, n))
        arrival -= arrival[0]
    absent = np.full(n, -1)
    return Workload(
        name="measured load",
        source_format="score",
        arrival_s=arrival,
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=output,  # a benchmark asks for as many as it wants
        block_tokens=0,
        block_offsets=np.zeros(n + 1, dtype=np.int64),
        block_ids=np.zeros(0, dtype=np.int32),
        session=absent.astype(np.int32),
        parent=absent.astype(np.int32),
        model=absent.astype(np.int16),
        models=(),
        adapter=absent.astype(np.int16),
        adapters=(),
        tools=np.zeros(n, dtype=np.int16),
        digest="",
    )


def _lengths(rng: np.random.Generator, n: int, nominal: float, spread: str, sigma: float) -> NDArray[np.int32]:
    if spread == "uniform":
        drawn = rng.integers(max(1, round(0.8 * nominal)), round(nominal) + 1, n).astype(float)
    elif spread == "sharegpt":
        drawn = np.minimum(rng.lognormal(0.0, sigma, n) * nominal * np.exp(-sigma * sigma / 2), SHAREGPT_MOST)
        drawn *= nominal / drawn.mean()
    else:
        drawn = np.full(n, nominal)
    lengths: NDArray[np.int32] = np.maximum(1, np.rint(drawn)).astype(np.int32)
    return lengths
