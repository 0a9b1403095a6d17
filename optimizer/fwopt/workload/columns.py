"""A workload in memory: one array a field, so that ten million requests cost no Python objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival. `-1` codes in index columns mean absent (internal arrays only)."""

    name: str
    source_format: str
    arrival_s: NDArray[np.float64]
    """Seconds since the first request; ascending."""
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    """Oracle: what the request really produced. The scheduler may not see it."""
    max_tokens: NDArray[np.int32]
    """The limit the client sent; 0 where it sent none."""
    block_tokens: int
    """Tokens covered by one prefix block; 0 when the trace has no prefix information."""
    block_offsets: NDArray[np.int64]
    """Request i's blocks are block_ids[block_offsets[i]:block_offsets[i+1]]; length n+1."""
    block_ids: NDArray[np.int32]
    """Dense ids 0..unique-1; equal ids are equal prefixes (each id stands for its whole prefix chain)."""
    session: NDArray[np.int32]
    parent: NDArray[np.int32]
    """Index of the request this one continues."""
    model: NDArray[np.int16]
    models: tuple[str, ...]
    """Names; `model` indexes them. Empty when the trace names none."""
    adapter: NDArray[np.int16]
    adapters: tuple[str, ...]
    tools: NDArray[np.int16]
    """Number of tools offered to the request."""
    digest: str
    """SHA-256 (16 hex digits) of the columns: equal content, equal digest, whatever the file format."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def unique_blocks(self) -> int:
        return int(self.block_ids.max()) + 1 if len(self.block_ids) else 0

    @property
    def duration_s(self) -> float:
        """First to last arrival."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0
