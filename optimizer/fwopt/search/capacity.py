"""How far a deployment goes: the largest arrival rate at which every limit still holds."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from fwopt.search.scoring import billed_s
from fwopt.spec.outcome import Evaluation, Rejected
from fwopt.spec.plan import Capacity

TOLERANCE = 0.02
CEILING = 64.0
"""Rate multiples tried at most; a deployment that holds here is reported as `at least`."""
FLOOR = 1 / 64

Probes = Generator[float, Evaluation | Rejected, "Edge"]


@dataclass(frozen=True, slots=True)
class Edge:
    """What the bisection found. `held` kept every limit; `broke` did not, at most `tolerance` above."""

    rate_scale: float | None
    """None: not even the lowest rate tried holds."""
    held: Evaluation | None
    broke: Evaluation | Rejected | None
    """None: still holding at the ceiling."""
    tolerance: float


def holds(outcome: Evaluation | Rejected) -> bool:
    return outcome.kind == "evaluation" and outcome.feasible


def find_edge(
    start: float = 1.0, tolerance: float = TOLERANCE, ceiling: float = CEILING, floor: float = FLOOR
) -> Probes:
    """Yield rate multiples to try, be sent what came of each, return the edge.

    Both ends of the final bracket were evaluated: the returned rate holds and one at most `tolerance`
    higher does not. Latency need not rise monotonically with load, so an edge is where limits first break
    on this path, not a proof that no higher rate could keep them.
    """
    low, held, high, broke = 0.0, None, 0.0, None
    rate = start
    while True:
        outcome = yield rate
        if holds(outcome):
            assert outcome.kind == "evaluation"
            low, held = rate, outcome
            if high == 0.0 and rate >= ceiling:
                return Edge(low, held, None, tolerance)
        else:
            high, broke = rate, outcome
            if low == 0.0 and rate <= floor:
                return Edge(None, None, broke, tolerance)
        if low and high and high <= low * (1 + tolerance):
            return Edge(low, held, broke, tolerance)
        rate = _next_rate(low, high, ceiling, floor)


def _next_rate(low: float, high: float, ceiling: float, floor: float) -> float:
    if not high:
        return min(low * 2, ceiling)
    if not low:
        return max(high / 2, floor)
    return float((low * high) ** 0.5)


def limiting_slo(broke: Evaluation | Rejected | None) -> str | None:
    """The limit that is furthest exceeded just above the edge."""
    if broke is None:
        return None
    if broke.kind == "rejected":
        return broke.reason
    missed = [r for r in broke.slos if not r.met]
    if not missed:
        return None
    worst = max(missed, key=lambda r: float("inf") if r.value_s is None else r.value_s / r.slo.limit_s)
    return str(worst.slo)


def capacity_of(edge: Edge, window_s: float) -> Capacity | None:
    """Rates at the edge, from the traffic offered there. `window_s`: first to last arrival at rate 1.

    At the edge every limit holds, so the deployment keeps up and serves what is offered. Limits looser than the
    trace is long hold for a backlog too: work of more than twice the window counts, and is billed, to its end.
    """
    if edge.rate_scale is None or edge.held is None or window_s <= 0:
        return None
    held = edge.held
    seconds = billed_s(held.metrics, window_s / edge.rate_scale, kept=True)
    tokens_per_s = held.metrics.output_tokens / seconds
    usd = held.cost.usd_per_hour / 3600 / tokens_per_s * 1e6 if held.cost and tokens_per_s else None
    return Capacity(
        rate_scale=edge.rate_scale,
        tolerance=edge.tolerance,
        requests_per_s=held.metrics.finished / seconds,
        output_tokens_per_s=tokens_per_s,
        usd_per_1m_output_tokens=usd,
        limited_by=limiting_slo(edge.broke),
    )
