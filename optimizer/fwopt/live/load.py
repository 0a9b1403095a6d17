"""When requests are offered: the trace's own times, or another law over the same requests."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fwopt.errors import InputError
from fwopt.spec.base import Frozen
from fwopt.workload.columns import Workload
from fwopt.workload.scale import FASTEST, SLOWEST

Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Recorded(Frozen):
    """Open loop at the recorded times, every gap divided by `rate_scale`."""

    kind: Literal["recorded"] = "recorded"
    rate_scale: Annotated[float, Field(ge=SLOWEST, le=FASTEST)] = 1.0


class ClosedLoop(Frozen):
    """`concurrency` requests in flight, in trace order, the next one sent when one ends; recorded times are ignored."""

    kind: Literal["closed"] = "closed"
    concurrency: Annotated[int, Field(ge=1, le=100_000)]


class Poisson(Frozen):
    """Open loop, independent exponential gaps with mean 1/rate; equal seeds give equal times."""

    kind: Literal["poisson"] = "poisson"
    rate: Rate
    """Requests per second."""
    seed: Annotated[int, Field(ge=0)] = 0


class Ramp(Frozen):
    """Open loop at a rate that grows (or falls) linearly over the requests' time, evenly spaced at each moment."""

    kind: Literal["ramp"] = "ramp"
    start_rate: Rate
    """Requests per second at the first request."""
    end_rate: Rate
    """Requests per second at the last request."""


Load = Annotated[Recorded | ClosedLoop | Poisson | Ramp, Field(discriminator="kind")]


def schedule(load: Load, workload: Workload, requests: int) -> NDArray[np.float64] | None:
    """Seconds after the start at which each of the first `requests` is due, ascending; None for a closed loop."""
    if not 1 <= requests <= len(workload):
        raise InputError(f"requests to send must be 1 to {len(workload)} (the trace's), got {requests}")
    if isinstance(load, Recorded):
        times = workload.arrival_s[:requests]
        return np.asarray((times - times[0]) / load.rate_scale, dtype=np.float64)
    if isinstance(load, Poisson):
        gaps = np.random.Generator(np.random.PCG64(load.seed)).exponential(1 / load.rate, requests - 1)
        return np.concatenate([[0.0], np.cumsum(gaps)])
    if isinstance(load, Ramp):
        return _ramp(load, requests)
    return None


def _ramp(load: Ramp, requests: int) -> NDArray[np.float64]:
    """Times at which the integral of the rate reaches 0, 1, 2, ...: (n-1) requests at the mean of both rates."""
    low, high = load.start_rate, load.end_rate
    count = np.arange(requests, dtype=np.float64)
    span_s = (requests - 1) * 2 / (low + high)
    if low == high or requests == 1:
        return count / low
    slope = (high - low) / span_s
    # low t + slope t^2 / 2 = count, in the form that stays exact for small slopes
    inside = np.maximum(low * low + 2 * slope * count, 0.0)
    return 2 * count / (low + np.sqrt(inside))
