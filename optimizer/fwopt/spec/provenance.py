"""How a number is known. Every latency carries one of these, and shares of them add up to one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fwopt.spec.base import Frozen

Provenance = Literal["measured", "interpolated", "bound", "assumed"]

CODES: tuple[Provenance, ...] = ("measured", "interpolated", "bound", "assumed")
"""Index = code used in arrays: 0 measured at that shape, 1 between measured shapes, 2 roofline bound
(a floor, nothing measured nearby), 3 stated efficiency prior (no measurement of this operator at all)."""

MEASURED, INTERPOLATED, BOUND, ASSUMED = range(4)

Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]


class ProvenanceShares(Frozen):
    """Fraction of simulated GPU time resting on each kind of evidence."""

    measured: Share = 0.0
    interpolated: Share = 0.0
    bound: Share = 0.0
    assumed: Share = 0.0


class Interval(Frozen):
    """Where a measured value lies, as multiples of the predicted one, in 80 % of results held out of the fit."""

    metric: Literal["ttft", "tpot", "throughput"]
    """Means over requests; throughput in output tokens per second."""
    group: Literal["dense", "moe", "all"]
    low: PositiveFloat
    high: PositiveFloat
    rows: PositiveInt
    """Held-out results behind it."""
