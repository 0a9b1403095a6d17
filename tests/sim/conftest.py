"""Small grids and workloads for the simulator's tests."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fwopt.perf.grid import StepGrid
from fwopt.workload.columns import Workload


def _shares(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.array([0.25, 0.75, 0.0, 0.0]), (*shape, 4)).copy()


@pytest.fixture(scope="session")
def make_grid() -> Callable[..., StepGrid]:
    """Step times of a made-up device; `scale` multiplies every one of them."""

    def make(
        scale: float = 1.0, *, captured: bool = True, host: float = 1e-3, lookahead: bool = True,
        front: float = 2e-4, chunk: float = 1e-5,
    ) -> StepGrid:  # fmt: skip
        tokens = np.array([1.0, 8, 64, 512, 4096, 16384])
        token_s = np.array([4e-3, 4.1e-3, 4.4e-3, 8e-3, 60e-3, 230e-3]) * scale
        batch, context = np.array([1.0, 16, 256, 1024]), np.array([1.0, 100, 1000, 10_000, 100_000])
        decode = (2e-4 + 3e-8 * batch[:, None] * context[None, :]) * scale
        length = np.array([0.0, 64, 1024, 8192, 131_072])
        prefill = np.array([0.0, 1e-4, 3e-3, 0.05, 5.0]) * scale
        return StepGrid(
            tokens=tokens,
            token_graph_s=token_s,
            token_eager_s=token_s + 2e-3 * scale,
            token_share=_shares(6),
            capture_sizes=np.array([1, 2, 4, 8, 16, 32, 64] if captured else [], dtype=np.int64),
            decode_batch=batch,
            decode_context=context,
            decode_s=decode,
            decode_share=_shares(4, 5),
            prefill_length=length,
            prefill_s=prefill,
            prefill_share=_shares(5),
            sample_batch=np.array([1.0, 1024]),
            sample_s=np.array([3e-4, 9e-4]) * scale,
            sample_share=_shares(2),
            prefill_chunk_floor_s=1e-5 * scale,
            step_cpu_s=host * 4 * scale,
            sequence_cpu_s=2e-6 * scale,
            serial_s=1e-4 * scale,
            request_s=1e-3 * scale,
            prompt_token_s=1e-7 * scale,
            front_s=front * scale,
            chunk_s=chunk * scale,
            async_scheduling=lookahead,
        )

    return make


@pytest.fixture(scope="session")
def make_workload() -> Callable[..., Workload]:
    """A workload from plain lists; `chains` are prefix ids per request, dense."""

    def make(
        arrival: Sequence[float],
        prompt: Sequence[int],
        output: Sequence[int],
        chains: Sequence[Sequence[int]] | None = None,
        block_tokens: int = 0,
        allowed: Sequence[int] | None = None,
    ) -> Workload:
        n = len(arrival)
        absent = np.full(n, -1)
        chains = chains or [()] * n
        return Workload(
            name="made",
            source_format="made",
            arrival_s=np.asarray(arrival, dtype=np.float64),
            prompt_tokens=np.asarray(prompt, dtype=np.int32),
            output_tokens=np.asarray(output, dtype=np.int32),
            max_tokens=np.zeros(n, dtype=np.int32) if allowed is None else np.asarray(allowed, dtype=np.int32),
            block_tokens=block_tokens,
            block_offsets=np.concatenate(([0], np.cumsum([len(c) for c in chains]))).astype(np.int64),
            block_ids=np.array([i for c in chains for i in c], dtype=np.int32),
            session=absent.astype(np.int32),
            parent=absent.astype(np.int32),
            model=absent.astype(np.int16),
            models=(),
            adapter=absent.astype(np.int16),
            adapters=(),
            tools=np.zeros(n, dtype=np.int16),
            digest="made",
        )

    return make


@pytest.fixture(scope="session")
def reference() -> Callable[..., list]:
    """`serve` of reference.py (tests are no package, so it cannot be imported)."""
    return runpy.run_path(str(Path(__file__).with_name("reference.py")))["serve"]
