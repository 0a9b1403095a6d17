"""Which stretch of a workload stands for all of it: the one whose simulated metrics are nearest to the whole's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fwopt.errors import InputError
from fwopt.spec.verification import Slice
from fwopt.workload.columns import Workload
from fwopt.workload.select import window

WINDOWS = 32
"""Stretches tried, evenly spread."""
UNANSWERED = 10.0
"""Counts as this much of a log error: a quantile that is infinite on one side only."""

Figures = Mapping[str, float | None]
Simulate = Callable[[Workload], Figures]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A stretch and its requests."""

    slice: Slice
    workload: Workload


def choose_slice(workload: Workload, requests: int | None, simulate: Simulate) -> Chosen:
    """The best of `WINDOWS` stretches of `requests` requests; None or enough of them: the whole workload.

    A stretch starts on an empty server, as its live replay will, so what the cut does to queues and caches is part of
    its error.
    """
    count = len(workload)
    if requests is not None and requests < 1:
        raise InputError(f"a slice needs at least one request, got {requests}")
    whole = simulate(workload)
    if requests is None or requests >= count:
        return Chosen(_described(workload, 0, count, count, whole, whole), workload)
    starts = np.unique(np.linspace(0, count - requests, WINDOWS).round().astype(int))
    best: tuple[float, int, Figures] | None = None
    for start in starts.tolist():
        found = simulate(window(workload, start, start + requests))
        distance = max(abs(_log_ratio(found[key], whole[key])) for key in whole)
        if best is None or distance < best[0]:
            best = distance, start, found
    assert best is not None
    _, start, found = best
    part = window(workload, start, start + requests)
    return Chosen(_described(part, start, start + requests, count, found, whole), part)


def _log_ratio(value: float | None, reference: float | None) -> float:
    if value is None or reference is None:
        return 0.0 if value is reference else UNANSWERED
    return math.log(value / reference) if value > 0 and reference > 0 else 0.0


def _described(part: Workload, start: int, stop: int, requests: int, found: Figures, whole: Figures) -> Slice:
    errors = {
        key: value / reference - 1
        for key, reference in whole.items()
        if (value := found[key]) is not None and reference
    }
    return Slice(start=start, stop=stop, requests=requests, digest=part.digest, errors=errors)
