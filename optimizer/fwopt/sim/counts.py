"""How often a run did steps of which shape: what operators are worth tuning for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepCounts:
    """All steps of all replicas, counted by their tokens, by what their decodes attend to, by their prompt chunks."""

    tokens: NDArray[np.int64]
    """(T,) ascending: tokens that a step's layers compute, after padding to captured graphs."""
    token_steps: NDArray[np.float64]
    """(T,) steps of so many tokens"""
    batch: NDArray[np.int64]
    """(D,) decoding sequences"""
    context: NDArray[np.float64]
    """(D,) tokens that each of them attends to, in the mean over sequences and steps"""
    decode_steps: NDArray[np.float64]
    """(D,) steps of such decodes"""
    chunks: NDArray[np.float64]
    """(P,) prompt chunks in a step, in the mean over steps"""
    chunk_tokens: NDArray[np.float64]
    """(P,) tokens of a chunk, in the mean over chunks"""
    chunk_context: NDArray[np.float64]
    """(P,) tokens that its last one attends to, likewise: those cached before the chunk, and the chunk"""
    chunk_steps: NDArray[np.float64]
    """(P,) steps of such chunks"""

    @property
    def steps(self) -> float:
        return float(self.token_steps.sum())
