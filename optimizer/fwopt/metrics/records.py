"""What happened to each request: written alike by the simulator and by the live client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FINISHED = 0
REJECTED_CONTEXT = 1
"""Prompt plus output exceed the model's context length."""
REJECTED_KV = 2
"""The request alone needs more KV blocks than a replica has."""
UNFINISHED = 3
"""The run ended (or was cut) before the request did."""
FAILED = 4
"""A live server answered with an error (an HTTP status, or an error event in the stream)."""
UNREACHABLE = 5
"""No live server: the connection was refused, or dropped before any answer."""
BROKEN_OFF = 6
"""The answer of a live server began and then broke off, or was no valid stream."""
TIMED_OUT = 7
"""A live server was silent for longer than the client waits."""
PARENT_FAILED = 8
"""Never sent: the turn of the conversation that it continues did not finish."""

STATUS_NAMES = (
    "finished",
    "exceeds context length",
    "exceeds KV cache",
    "unfinished",
    "failed",
    "unreachable",
    "broken off",
    "timed out",
    "parent failed",
)

GAP_BINS = 1700
GAP_EDGES_S: NDArray[np.float64] = np.geomspace(1e-5, 1e3, GAP_BINS + 1)
"""Inter-token-gap histogram, 10 us to 1,000 s: bins 1.1 % wide."""


@dataclass(frozen=True, slots=True)
class Records:
    """Columns, one entry a request, in trace order; all times in seconds on the trace's clock.

    Times are NaN where the event never happened.
    """

    arrival_s: NDArray[np.float64]
    scheduled_s: NDArray[np.float64]
    """First time any token of the request was scheduled."""
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    cached_tokens: NDArray[np.int32]
    status: NDArray[np.int8]
    replica: NDArray[np.int16]
    preemptions: NDArray[np.int32]
    itl_edges_s: NDArray[np.float64]
    """Bin edges of the inter-token-latency histogram (ascending, len = bins + 1)."""
    itl_counts: NDArray[np.float64]
    """Inter-token gaps per bin, over all requests."""

    def __len__(self) -> int:
        return len(self.arrival_s)
