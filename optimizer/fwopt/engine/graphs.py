"""Decode steps as CUDA graphs: captured once for every batch size and context length of a grid, then replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fwopt.engine.batch import Batch, Plan, decode_input
from fwopt.engine.model import Model

_SHORTEST_TOKENS = 1024
_STEP = 4
"""Captured context lengths: 1,024 tokens, times four each, up to the longest sequence."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    table: Tensor
    logits: Tensor


class DecodeGraphs:
    """A step of n decodes runs as the smallest captured size of at least n; the rows beyond n are padding, whose keys
    and values go to the cache's last block, number `blocks`."""

    def __init__(
        self, model: Model, caches: Sequence[Tensor], blocks: int, block_size: int, sizes: Sequence[int]
    ) -> None:
        self._model, self._caches, self._block_size, self._sizes = model, caches, block_size, sorted(sizes)
        self._spare = blocks
        most = self._sizes[-1]
        device = model.device
        self._tokens, self._positions, self._slots = (
            torch.zeros(most, dtype=torch.int64, device=device) for _ in range(3)
        )
        self._rows = torch.arange(most, device=device)
        self._widths = self._table_widths(model.max_positions)
        self._captured: dict[tuple[int, int], _Captured] = {}

    def _table_widths(self, longest: int) -> list[int]:
        """Blocks in a row of the table, ascending; the last holds the longest sequence."""
        lengths, tokens = [], _SHORTEST_TOKENS
        while tokens < longest:
            lengths.append(tokens)
            tokens *= _STEP
        return [-(-tokens // self._block_size) for tokens in (*lengths, longest)]

    @torch.inference_mode()
    def capture(self) -> None:
        """Largest first, all in one memory pool."""
        self._slots.fill_(self._spare * self._block_size)
        pool = torch.cuda.graph_pool_handle()
        for width in reversed(self._widths):
            table = torch.full((self._sizes[-1], width), self._spare, device=self._tokens.device)
            for size in reversed(self._sizes):
                self._forward(size, table[:size])  # loads kernels and workspaces outside the capture
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    logits = self._forward(size, table[:size])
                self._captured[size, width] = _Captured(graph, table[:size], logits)

    def _forward(self, size: int, table: Tensor) -> Tensor:
        rows, positions = slice(0, size), self._positions[:size]
        group = decode_input(rows, table, positions, self._block_size, self._model.masks)
        batch = Batch(self._tokens[rows], positions, self._slots[rows], self._rows[rows], [group])
        return self._model.logits(self._model.forward(batch, self._caches))

    def fitting(self, plan: Plan) -> tuple[int, int] | None:
        """(size, width) of the graph that runs this plan; None when it has prompt chunks or is too large."""
        if plan.chunks or not plan.decodes:
            return None
        size = next((s for s in self._sizes if s >= plan.decodes), None)
        width = next((w for w in self._widths if w >= plan.table.shape[1]), None)
        return None if size is None or width is None else (size, width)

    def replay(self, plan: Plan, key: tuple[int, int]) -> Tensor:
        """Logits (decodes, vocabulary); overwritten by the next replay."""
        captured, n, blocks = self._captured[key], plan.decodes, plan.table.shape[1]
        for static, values, padding in (
            (self._tokens, plan.tokens, 0),
            (self._positions, plan.positions, 0),
            (self._slots, plan.slots, self._spare * self._block_size),
        ):
            static[:n].copy_(torch.from_numpy(values), non_blocking=True)
            static[n : key[0]].fill_(padding)
        captured.table[:n, :blocks].copy_(torch.from_numpy(plan.table), non_blocking=True)
        captured.table[:n, blocks:].fill_(self._spare)
        captured.table[n:].fill_(self._spare)
        captured.graph.replay()
        return captured.logits[:n]
