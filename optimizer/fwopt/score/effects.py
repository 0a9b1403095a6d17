"""What real engines do and simulators forget, each switchable, so that what it is worth can be shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fwopt.errors import UnknownNameError
from fwopt.perf.calibration import Calibration
from fwopt.perf.grid import StepGrid
from fwopt.perf.priors import Priors, load_priors
from fwopt.spec.candidate import Candidate

EFFECTS = {
    "async": "a step is put together while the one before it runs, so an arrival waits for both",
    "host": "time per step and sequence that the GPU waits for the host",
    "api": "HTTP, tokenising and detokenising before the first token",
    "graphs": "padding to captured sizes; steps beyond the largest, and SGLang's prompts, launched eagerly",
    "prefill-first": "SGLang's order: prompts stop all decoding",
    "chunking": "the token budget that cuts long prompts into chunks and mixes them with decodes",
    "kv-limit": "the finite KV cache: queueing and preemption by recompute",
    "all-reduce": "tensor-parallel communication",
    "routing": "uneven load of experts (off: balanced)",
    "calibration": "the fitted factors",
}
"""Name -> what is left out with `fwopt score --without NAME`."""

_NOTHING = 1e-9
UNLIMITED_BLOCKS = 1 << 24
WHOLE_PROMPTS = 131_072


def parse_effects(text: str | None) -> frozenset[str]:
    """`async,host` -> the names; UnknownNameError names the nearest."""
    names = frozenset(name.strip() for name in (text or "").split(",") if name.strip())
    for name in sorted(names - EFFECTS.keys()):
        raise UnknownNameError("effect", name, EFFECTS)
    return names


def calibration_without(calibration: Calibration, off: frozenset[str]) -> Calibration:
    if "calibration" in off:
        calibration = Calibration(engine=calibration.engine)
    if "all-reduce" in off:
        calibration = calibration.model_copy(update={"factors": {**calibration.factors, "comm": _NOTHING}})
    return calibration


def priors_without(off: frozenset[str]) -> Priors:
    priors = load_priors()
    if "routing" in off:
        return priors.model_copy(update={"moe": priors.moe.model_copy(update={"routing": "balanced"})})
    return priors


def grid_without(grid: StepGrid, off: frozenset[str]) -> StepGrid:
    if "async" in off:
        grid = replace(grid, async_scheduling=False)
    if "host" in off:
        grid = replace(
            grid, step_cpu_s=0.0, sequence_cpu_s=0.0, serial_s=0.0, sequence_serial_s=0.0, prefill_step_s=0.0
        )
    if "api" in off:
        grid = replace(grid, request_s=0.0, prompt_token_s=0.0)
    if "graphs" in off:
        sizes = np.zeros(0, dtype=np.int64)
        grid = replace(grid, capture_sizes=sizes, token_eager_s=grid.token_graph_s, prefill_in_graphs=True)
    return grid


def candidate_without(candidate: Candidate, off: frozenset[str]) -> Candidate:
    if "chunking" not in off:
        return candidate
    batching = candidate.batching.model_copy(update={"max_num_batched_tokens": WHOLE_PROMPTS})
    return candidate.model_copy(update={"batching": batching})
