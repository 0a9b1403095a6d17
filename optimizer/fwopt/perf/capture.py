"""Batch sizes that an engine captures as CUDA graphs by default; a batch is padded to the next one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import UnmeasuredError
from fwopt.spec.candidate import Batching


def _vllm(batching: Batching, limit: int, each: int) -> list[int]:
    """1, 2, 4, then every 8 below 256 and every 16 from there, up to twice the tokens of a decode step
    (`_set_cudagraph_sizes`)."""
    largest = min(2 * batching.max_num_seqs * each, limit, batching.max_num_batched_tokens)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, limit + 1, 16)]
    if batching.max_num_batched_tokens <= largest:
        sizes.append(batching.max_num_batched_tokens)
    return sorted({size for size in sizes if size <= largest})


def _sglang(batching: Batching, limit: int, each: int) -> list[int]:
    """1, 2, 4, 8, 12, then every 8 to 256 and every 16 from there, decode batches only."""
    sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, limit + 1, 16)]
    return sorted({min(size, batching.max_num_seqs) for size in sizes if size <= limit})


_RULES: dict[str, Callable[[Batching, int, int], list[int]]] = {"vllm": _vllm, "fwopt": _vllm, "sglang": _sglang}


def capture_sizes(engine: str, batching: Batching, limit: int, each: int = 1) -> NDArray[np.int64]:
    """Ascending sizes; `limit` is the engine's largest default (`overheads: max_captured_tokens`), `each` the tokens
    that a decoding sequence may bring."""
    if engine not in _RULES:
        raise UnmeasuredError(f"the CUDA-graph sizes of engine {engine} are not known; known: {', '.join(_RULES)}")
    return np.asarray(_RULES[engine](batching, limit, each), dtype=np.int64)
