"""The contract between hardware and scheduler: a candidate's step times as small tables.

The simulator knows no GPU; it looks up these arrays. One engine step over a batch costs

    gpu = token(M) + decode(n, mean context) + sum over chunks of [prefill(p + c) - prefill(p)] + sample(s)
          + beside(prompt tokens) * n * mean context
    step = max(gpu, cpu) + serial      cpu    = step_cpu_s + n_scheduled * sequence_cpu_s
                                       serial = serial_s + n_scheduled * sequence_serial_s
                                                + prefill_step_s when there are chunks
                                                + beside_step_s when there are chunks and decodes

with M the tokens of the step after CUDA-graph padding, n decoding sequences, chunk c after p tokens
already in the cache, and s sequences that get a token. All interpolation is linear between grid points.

Where a drafter guesses ahead (`perf/speculating.py`), M and s count guessed tokens too, and a step also costs
drafter(n), and `lookup_token_s` of host time per token of all n contexts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepGrid:
    """Step times of one candidate on one device type, in seconds; shares' last axis is `spec.provenance.CODES`."""

    tokens: Floats
    """(T,) ascending token counts M, first 1, last >= max_num_batched_tokens."""
    token_graph_s: Floats
    """(T,) everything that depends on M only (GEMMs, MoE, norms, all-reduce), replayed from a CUDA graph."""
    token_eager_s: Floats
    """(T,) the same launched eagerly (M above the largest captured size)."""
    token_share: NDArray[np.float64]
    """(T, 4)"""
    capture_sizes: NDArray[np.int64]
    """Ascending captured batch sizes; M is padded up to the next one; beyond the last: eager. Empty: all eager."""
    decode_batch: Floats
    """(B,) ascending"""
    decode_context: Floats
    """(C,) ascending mean context lengths in tokens"""
    decode_s: Floats
    """(B, C) decode attention over all layers"""
    decode_share: NDArray[np.float64]
    """(B, C, 4)"""
    prefill_length: Floats
    """(L,) ascending, first 0"""
    prefill_s: Floats
    """(L,) causal attention over the first L tokens, all layers, one sequence; prefill_s[0] = 0"""
    prefill_share: NDArray[np.float64]
    """(L, 4)"""
    sample_batch: Floats
    """(S,) ascending"""
    sample_s: Floats
    """(S,) LM head and sampling for S sequences"""
    sample_share: NDArray[np.float64]
    """(S, 4)"""
    prefill_chunk_floor_s: float
    """Least attention time of one prefill chunk over all layers (launches)."""
    step_cpu_s: float
    """Host time per step that overlaps the GPU (asynchronous scheduling)."""
    sequence_cpu_s: float
    """Host time per scheduled sequence and step, overlapping likewise."""
    serial_s: float
    """Host time per step that does not overlap."""
    request_s: float
    """A request's way through the API to the engine, in which nobody waits for it."""
    prompt_token_s: float
    """The API server's own time per prompt token (tokenizing); requests wait for one another."""
    sequence_serial_s: float = 0.0
    """Host time per scheduled sequence and step that does not overlap."""
    prefill_step_s: float = 0.0
    """Host time that does not overlap, per step that computes prompt chunks."""
    beside_step_s: float = 0.0
    """What such a step takes longer where sequences decode beside the chunks."""
    prefill_in_graphs: bool = True
    """Steps with prompt chunks replay captured graphs up to the largest size (vLLM); False: eager (SGLang)."""
    front_s: float = 0.0
    """The API server's own time per request (HTTP, parsing, templates); requests wait for one another."""
    chunk_s: float = 0.0
    """The API server's own time per token sent back (detokenizing, streaming), in the same queue."""
    beside_s: Floats | None = None
    """(T,) what prompt chunks of so many `tokens` take longer for each token of context that decodes beside them:
    llama.cpp's sequences share one pool of cells, and a prompt's attention passes over all of it. None: nothing."""
    drafter_s: Floats | None = None
    """(S,) what a draft model does in a step beside its part of the times above, for S sequences"""
    lookup_token_s: float = 0.0
    """Host time to look for n-grams, per token of context; nothing overlaps with it."""
    async_scheduling: bool = True
    """Step n+1 is put together when step n starts: a request that arrives in between waits one more step, and the place
    and blocks of one that ends with step n are free for step n+2 (vLLM)."""

    def scaled(self, decode: float, prefill: float | None = None, request_s: float = 0.0) -> Self:
        """Every engine step longer by a factor: `decode` where weights are streamed, `prefill` (None: the same) where
        arithmetic counts. A step of M tokens takes its share of each by how much of its time one token alone takes.
        Outside the engine loop `request_s` is added to every request's delay, which is never below zero."""
        prefill = decode if prefill is None else prefill

        def mixed(seconds: Floats) -> Floats:
            with np.errstate(invalid="ignore", divide="ignore"):
                streamed = np.clip(np.nan_to_num(seconds[0] / seconds, nan=1.0), 0.0, 1.0)
            return np.asarray(seconds * decode**streamed * prefill ** (1 - streamed), dtype=np.float64)

        changes = {name: getattr(self, name) * decode for name in _DECODE_TIMES}
        changes |= {name: getattr(self, name) * prefill for name in _PREFILL_TIMES}
        changes |= {name: mixed(getattr(self, name)) for name in ("token_graph_s", "token_eager_s")}
        if self.drafter_s is not None:
            changes["drafter_s"] = self.drafter_s * decode
        if self.beside_s is not None:
            changes["beside_s"] = self.beside_s * prefill
        changes["request_s"] = max(0.0, self.request_s + request_s)
        return replace(self, **changes)


_DECODE_TIMES = ("decode_s", "sample_s", "step_cpu_s", "sequence_cpu_s", "serial_s", "sequence_serial_s",
                 "lookup_token_s")  # fmt: skip
_PREFILL_TIMES = ("prefill_s", "prefill_chunk_floor_s", "prefill_step_s", "beside_step_s")
