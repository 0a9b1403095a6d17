"""Step times where a drafter guesses tokens ahead, which the model then checks in one step.

A sequence with k guessed tokens brings 1 + k tokens to the step: the model's layers and its LM head see them all, and
attention reads the cached context once for all of them. That last point is a floor, and labelled so: nobody timed
attention of a few tokens a sequence here.

A draft model (vLLM's `draft_model`) first runs over every token of the step, prompts included, then once more for each
further token that it guesses. An n-gram lookup runs on the host between two steps, and vLLM schedules synchronously
with it (`config/vllm.py`), so that host time adds to the device's in place of overlapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fwopt.errors import UnmeasuredError
from fwopt.perf.costs import Costs, CostsOver
from fwopt.perf.grid import Floats, StepGrid
from fwopt.spec.candidate import Bf16, Candidate
from fwopt.spec.provenance import BOUND, CODES

LOOKUP_TOKEN_S = 1.0e-9
"""One thread of a server processor over one token of context, `_find_longest_matched_ngram_and_propose_tokens` of vLLM
0.32: benchmarks/speculation.md."""


@dataclass(frozen=True, slots=True)
class SpeculatingCosts(CostsOver):
    """Step times with and without a drafter."""

    plain: Costs
    drafts: Mapping[str, Costs]
    """Of draft models, by the name that candidates have for them."""

    def grid(self, candidate: Candidate) -> StepGrid:
        drafter = candidate.speculation
        if drafter is None:
            return self.plain.grid(candidate)
        kinds = {group.attention.kind for group in self.model.layers}
        if kinds != {"gqa"}:
            raise UnmeasuredError(f"speculation is modelled for grouped-query attention only, {self.model.name} has "
                                  f"{', '.join(sorted(kinds))}")  # fmt: skip
        if candidate.parallelism.dp > 1:
            raise UnmeasuredError("speculation is not modelled with attention data parallelism; search dp 1")
        grid = _checking(self.plain.grid(candidate))
        if drafter.kind == "ngram":
            return _looking_up(grid)
        own = self.drafts[drafter.model].grid(candidate.model_copy(update={"quantization": Bf16(), "kernels": None}))
        return _drafting(grid, own, drafter.tokens)


def _checking(grid: StepGrid) -> StepGrid:
    """Attention over several tokens of a sequence as over one."""
    shape = grid.decode_s.shape
    return replace(grid, decode_share=np.broadcast_to(np.eye(len(CODES))[BOUND], (*shape, len(CODES))).copy())


def _looking_up(grid: StepGrid) -> StepGrid:
    return replace(
        grid,
        serial_s=grid.serial_s + grid.step_cpu_s,
        sequence_serial_s=grid.sequence_serial_s + grid.sequence_cpu_s,
        step_cpu_s=0.0,
        sequence_cpu_s=0.0,
        async_scheduling=False,
        lookup_token_s=LOOKUP_TOKEN_S,
    )


def _drafting(grid: StepGrid, draft: StepGrid, guessed: int) -> StepGrid:
    """Both models together. The draft's shares of evidence are those of the nearest of its own points."""
    tokens, contexts, lengths = grid.tokens, grid.decode_context, grid.prefill_length
    rows = _along(draft.decode_batch, draft.decode_s, grid.decode_batch)
    decode = guessed * _along(draft.decode_context, rows.T, contexts).T
    graph = _along(draft.tokens, draft.token_graph_s, tokens)
    eager = _along(draft.tokens, draft.token_eager_s, tokens)
    prefill = _along(draft.prefill_length, draft.prefill_s, lengths)
    again = _along(draft.tokens, draft.token_graph_s, grid.sample_batch) * (guessed - 1)
    logits = _along(draft.sample_batch, draft.sample_s, grid.sample_batch) * guessed
    token_share = _nearest(draft.tokens, draft.token_share, tokens)
    prefill_share = _nearest(draft.prefill_length, draft.prefill_share, lengths)
    sample_share = _nearest(draft.sample_batch, draft.sample_share, grid.sample_batch)
    return replace(
        grid,
        token_graph_s=grid.token_graph_s + graph,
        token_eager_s=grid.token_eager_s + eager,
        token_share=_both(grid.token_graph_s, grid.token_share, graph, token_share),
        decode_s=grid.decode_s + decode,
        prefill_s=grid.prefill_s + prefill,
        prefill_share=_both(grid.prefill_s, grid.prefill_share, prefill, prefill_share),
        prefill_chunk_floor_s=grid.prefill_chunk_floor_s + draft.prefill_chunk_floor_s,
        sample_share=_both(grid.sample_s, grid.sample_share, again + logits, sample_share),
        drafter_s=again + logits,
    )


def _along(points: Floats, values: Floats, wanted: Floats) -> Floats:
    """Linear between the points of the first axis, and on beyond the last two."""
    at = np.clip(np.searchsorted(points, wanted, side="right") - 1, 0, len(points) - 2)
    weight = np.maximum((wanted - points[at]) / (points[at + 1] - points[at]), 0.0)
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    found: Floats = np.maximum(values[at] * (1 - weight) + values[at + 1] * weight, 0.0)
    return found


def _nearest(points: Floats, shares: Any, wanted: Floats) -> Any:
    return shares[np.abs(points[None, :] - wanted[:, None]).argmin(1)]


def _both(first: Floats, first_share: Any, second: Floats, second_share: Any) -> Any:
    """Shares of the sum; where it is zero, the first's."""
    whole = (first + second)[..., None]
    sums = first[..., None] * first_share + second[..., None] * second_share
    return np.where(whole > 0, sums / np.where(whole > 0, whole, 1.0), first_share)
