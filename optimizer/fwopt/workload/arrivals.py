"""How requests arrive: rate over time, bursts, and the grain of the clock that stamped them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fwopt.spec.base import Frozen
from fwopt.workload.columns import Workload

_NICE_S = (0.01, 0.1, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 604800)
_SERIES_POINTS = 60
_PEAK_S = (1.0, 10.0, 60.0, 300.0, 3600.0, 86400.0)
_DISPERSION_S = (0.1, 1.0, 10.0, 60.0)
_TICK_TOLERANCE = 0.02
_COARSE_TICK_S = 0.1
_LEAST_TICK_S = 1e-9
"""No clock that stamps requests is finer."""


class Peak(Frozen):
    """The busiest stretch of one length, anywhere in the trace (not only on a grid)."""

    window_s: float
    start_s: float
    """Seconds after the first request."""
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    """Of the requests that arrive in the stretch; their tokens are produced a little later."""
    over_mean: float
    """Requests per second over the whole trace's mean."""


class Dispersion(Frozen):
    """Variance over mean of the number of arrivals in windows of one length: 1 for Poisson, more for bursts."""

    window_s: float
    index: float


class Rate(Frozen):
    """Arrival rate."""

    mean_per_s: float | None
    """None when all requests arrive at one moment."""
    gap_cv: float | None
    """Standard deviation over mean of the gaps between arrivals: 1 for Poisson."""
    dispersion: tuple[Dispersion, ...]
    series_window_s: float
    series_per_s: tuple[float, ...]
    """Rate in each window from the first request on; the last one ends with the trace and is
    between half and one and a half windows long."""
    peaks: tuple[Peak, ...]
    """The windows to size for, shortest first."""


class Grain(Frozen):
    """How finely arrivals were stamped."""

    tick_s: float | None
    """Arrivals lie on multiples of this; None when no tick shows."""
    distinct_share: float
    """Distinct arrival times over requests."""
    most_at_once: int
    """Most requests with one and the same arrival time."""
    coarse: bool
    """The tick is long enough to make queues of its own: a TTFT tail may be the tick, not the server."""


def rate(workload: Workload) -> Rate:
    arrival, span = workload.arrival_s, workload.duration_s
    window = _series_window(span)
    edges = max(int(span / window + 0.5), 1)  # a rest shorter than half a window joins the last one
    counts = np.bincount(np.minimum((arrival / window).astype(np.int64), edges - 1), minlength=edges)
    widths = np.full(edges, window, np.float64)
    if span > 0:
        widths[-1] = span - window * (edges - 1)
    gaps = np.diff(arrival)
    mean_gap = float(gaps.mean()) if len(gaps) else 0.0
    return Rate(
        mean_per_s=len(workload) / span if span > 0 else None,
        gap_cv=float(gaps.std(ddof=1)) / mean_gap if mean_gap > 0 and len(gaps) > 1 else None,
        dispersion=tuple(_dispersion(arrival, span, w) for w in _DISPERSION_S if span >= 10 * w and len(gaps) > 20),
        series_window_s=window,
        series_per_s=tuple(float(v) for v in counts / widths),
        peaks=tuple(_peak(workload, w) for w in _PEAK_S if span >= 2 * w),
    )


def _series_window(span_s: float) -> float:
    """Seconds; whole weeks beyond the nice lengths, so that no trace has more than `_SERIES_POINTS` windows."""
    weeks = _NICE_S[-1] * math.ceil(span_s / _SERIES_POINTS / _NICE_S[-1])
    return next((w for w in _NICE_S if span_s / w <= _SERIES_POINTS), weeks)


def _dispersion(arrival: NDArray[np.float64], span_s: float, window_s: float) -> Dispersion:
    """Over whole windows only; empty ones are counted, not stored, for a quiet month has millions."""
    windows = int(span_s / window_s)
    where = (arrival / window_s).astype(np.int64)
    counts = np.unique(where[where < windows], return_counts=True)[1]
    mean = float(counts.sum()) / windows
    away = float(np.square(counts - mean).sum()) + (windows - len(counts)) * mean**2
    return Dispersion(window_s=window_s, index=away / (windows - 1) / mean)


def busiest(arrival: NDArray[np.float64], window_s: float, weight: NDArray[np.int32] | None = None) -> slice:
    """The requests of the window that holds most requests (or weight), the earliest of equals.

    Each request opens a window, so the busiest stretch is found wherever it lies.
    """
    last = np.searchsorted(arrival, arrival + window_s, side="left")
    before = np.arange(len(arrival) + 1) if weight is None else np.concatenate([[0], np.cumsum(weight, dtype=np.int64)])
    first = int(np.argmax(before[last] - before[:-1]))
    return slice(first, int(last[first]))


def _peak(workload: Workload, window_s: float) -> Peak:
    found = busiest(workload.arrival_s, window_s)
    per_s = (found.stop - found.start) / window_s
    return Peak(
        window_s=window_s,
        start_s=float(workload.arrival_s[found.start]),
        requests_per_s=per_s,
        prompt_tokens_per_s=float(workload.prompt_tokens[found].sum(dtype=np.int64)) / window_s,
        output_tokens_per_s=float(workload.output_tokens[found].sum(dtype=np.int64)) / window_s,
        over_mean=per_s / (len(workload) / workload.duration_s),
    )


def grain(workload: Workload) -> Grain:
    times, counts = np.unique(workload.arrival_s, return_counts=True)
    tick = _tick(times)
    most = int(counts.max())
    return Grain(
        tick_s=tick,
        distinct_share=len(times) / len(workload),
        most_at_once=most,
        coarse=tick is not None and tick >= _COARSE_TICK_S and most > 1,
    )


def _tick(times: NDArray[np.float64]) -> float | None:
    """The longest step of which nearly all gaps between distinct arrivals are multiples, give or take 2 % of it.

    A stamping loop drifts by milliseconds, so the step is the median over gaps, not the smallest one.
    """
    gaps = np.diff(times)
    if len(gaps) < 20:
        return None
    for quantile in (0.5, 0.1, 0.01, 0.0):
        guess = float(np.quantile(gaps, quantile, method="lower"))
        if guess < _LEAST_TICK_S:
            continue
        steps = np.maximum(np.rint(gaps / guess), 1)
        tick = float(np.median(gaps / steps))
        away = np.abs(gaps / tick - np.rint(gaps / tick))
        if np.mean(away < _TICK_TOLERANCE) >= 0.99:
            return float(f"{tick:.6g}")
    return None
