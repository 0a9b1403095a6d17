"""What every renderer says, decided once: costs, limits, how a number is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.report.settings import difference_text
from fwopt.spec.hardware import Price
from fwopt.spec.objective import format_statistic
from fwopt.spec.outcome import Evaluation, SloResult
from fwopt.spec.plan import Entry, Plan

HOURS_PER_MONTH = 730
"""365 days x 24 h / 12, rounded."""


MOST_NAMED = 3
"""Latencies that one line names."""
FAR = 2.0
"""From this multiple of the limit a miss is told as a multiple, not as a percentage."""


@dataclass(frozen=True, slots=True)
class UnitCost:
    """Dollars per 1M output tokens of chosen and baseline, on the same basis."""

    chosen: float
    baseline: float | None
    at_capacity: bool
    at_most: bool
    """The capacity search stopped at its ceiling: the real figure can only be lower."""

    @property
    def basis(self) -> str:
        return "at SLO capacity" if self.at_capacity else "at this traffic"

    @property
    def margin(self) -> str | None:
        """`38% less`, or None without a baseline."""
        return f.change(self.chosen, self.baseline)


def known(evaluation: Evaluation) -> str:
    """How the latencies of an evaluation are known, for example `simulated: 62% interpolated, 38% measured`."""
    if evaluation.source == "measured":
        return "measured on a live server"
    return f"simulated: {f.provenance(evaluation.provenance)}"


def baseline_name(plan: Plan) -> str:
    if plan.baseline_kind == "given":
        return "your current config"
    return f"{f.plain(plan.engine.name)} {f.plain(plan.engine.version)} defaults"


def is_baseline(plan: Plan, entry: Entry | None) -> bool:
    return entry is not None and plan.baseline is not None and entry.candidate.id == plan.baseline.candidate.id


def unit_cost(plan: Plan) -> UnitCost | None:
    """At SLO capacity where the chosen plan has one, at the trace's own load otherwise; None without a price."""
    if plan.chosen is None:
        return None
    capacity, old = plan.chosen.capacity, plan.baseline
    if capacity is not None and capacity.usd_per_1m_output_tokens is not None:
        theirs = old.capacity.usd_per_1m_output_tokens if old and old.capacity else None
        return UnitCost(capacity.usd_per_1m_output_tokens, theirs, True, capacity.limited_by is None)
    return traffic_cost(plan)


def traffic_cost(plan: Plan) -> UnitCost | None:
    """At the trace's own load, idle time paid for: what `minimize cost` minimizes."""
    cost = plan.chosen.evaluation.cost if plan.chosen else None
    if cost is None or cost.usd_per_1m_output_tokens is None:
        return None
    old = plan.baseline
    theirs = old.evaluation.cost.usd_per_1m_output_tokens if old and old.evaluation.cost else None
    return UnitCost(cost.usd_per_1m_output_tokens, theirs, False, False)


def unit_price(entry: Entry) -> str:
    """Dollars per 1M output tokens with their basis: `c` at SLO capacity, `t` at this traffic."""
    edge, cost = entry.capacity, entry.evaluation.cost
    if edge is not None and edge.usd_per_1m_output_tokens is not None:
        return f"{f.usd(edge.usd_per_1m_output_tokens)} c"
    if cost is not None and cost.usd_per_1m_output_tokens is not None:
        return f"{f.usd(cost.usd_per_1m_output_tokens)} t"
    return f.NONE


def usd_per_month(entry: Entry | None) -> float | None:
    """Every GPU billed around the clock: price x GPUs x 730 h."""
    cost = entry.evaluation.cost if entry else None
    return cost.usd_per_hour * HOURS_PER_MONTH if cost else None


def month_saving(plan: Plan) -> float | None:
    """Dollars a month against a baseline that keeps the same SLOs on the same traffic; None otherwise."""
    if plan.chosen is None or plan.baseline is None or not plan.baseline.evaluation.feasible:
        return None
    here, there = usd_per_month(plan.chosen), usd_per_month(plan.baseline)
    return there - here if here is not None and there is not None else None


def month_basis(plan: Plan) -> str:
    """The assumptions under every monthly figure."""
    price = plan.hardware.price
    if price is None:
        return "no price was given"
    return f"{price_text(price)}; every GPU billed {HOURS_PER_MONTH} h a month, idle or busy"


def price_text(price: Price) -> str:
    """`$4.50 per GPU-hour (median on-demand, 2026-02 to 2026-09; --price overrides)`."""
    known = f.plain(price.basis)
    if price.source != "user":
        found = sorted(f.plain(price.dates).split("; "))
        dates = [d for d in found if d[:1].isdigit()]
        span = [f"{dates[0]} to {dates[-1]}"] if len(dates) > 1 else dates
        known += f", {f.listing([*span, *(d for d in found if d not in dates)])}; --price overrides"
    return f"{f.usd(price.usd_per_gpu_hour)} per GPU-hour ({known})"


def slo_text(result: SloResult) -> str:
    """`TTFT p99 1.83 s, limit 2.00 s, met, 8.5% below`."""
    slo = result.slo
    return f"{f.slo_name(slo)} {f.seconds(result.value_s)}, limit {f.seconds(slo.limit_s)}, {standing(result)}"


def standing(result: SloResult) -> str:
    """`met, 8.5% below`, `missed, 12% over` or `missed, 35x the limit`."""
    if result.value_s is None:
        return "missed"
    ratio = result.value_s / result.slo.limit_s
    if result.met:
        return f"met, {f.percent(1 - ratio)} below"
    return f"missed, {f'{f.factor(ratio)} the limit' if ratio >= FAR else f'{f.percent(max(ratio - 1, 0.0))} over'}"


def tightest(evaluation: Evaluation) -> SloResult | None:
    """The limit with the least room (or missed by most)."""
    ratio = {r.slo: math.inf if r.value_s is None else r.value_s / r.slo.limit_s for r in evaluation.slos}
    return max(evaluation.slos, key=lambda r: ratio[r.slo], default=None)


_INTERVAL_NAMES = {"ttft": "mean TTFT", "tpot": "mean TPOT", "throughput": "throughput"}


def accuracy(plan: Plan) -> str | None:
    """How far such predictions were off where somebody measured, for example `mean TTFT 0.90-1.15x the predicted`."""
    if not plan.intervals:
        return None
    said = [f"{_INTERVAL_NAMES[i.metric]} {i.low:.2f}-{i.high:.2f}x" for i in plan.intervals]
    fewest = min(i.rows for i in plan.intervals)
    return f"in 80% of {fewest}+ results held out of the fit, measured {f.listing(said)} the predicted"


def drift(entry: Entry) -> str | None:
    """What slightly longer steps would make of the latencies that count: `steps 5% longer would make TTFT p99 2.10 s
    (17% more); ttft:p99<2s would be missed`."""
    if entry.if_slower is None or entry.evaluation.source != "simulated":
        return None
    promised, slower = _latencies(entry.evaluation), _latencies(entry.if_slower.evaluation)
    more = {name: _more(promised[name], slower[name]) for name in promised}
    named = sorted(more, key=lambda name: -more[name])[:MOST_NAMED]
    told = {name: f.change(slower[name], promised[name]) for name in named}
    said = [f"{name} {f.seconds(slower[name])}" + (f" ({told[name]})" if told[name] else "") for name in named]
    text = f"steps {f.percent(entry.if_slower.factor - 1)} longer would make {f.listing(said)}"
    kept = {r.slo for r in entry.evaluation.slos if r.met}
    lost = [f.plain(str(r.slo)) for r in entry.if_slower.evaluation.slos if r.slo in kept and not r.met]
    return f"{text}; {f.listing(lost)} would be missed" if lost else text


def _latencies(evaluation: Evaluation) -> dict[str, float | None]:
    """Those that the objective limits or optimises; where it names none, the usual two."""
    found = {f.slo_name(r.slo): r.value_s for r in evaluation.slos}
    for result in evaluation.goals:
        if result.goal.statistic is not None:
            name = f"{f.metric_name(result.goal.metric)} {format_statistic(result.goal.statistic)}"
            found.setdefault(name, result.value)
    return found or {"TTFT p90": evaluation.metrics.ttft.p90_s, "TPOT p90": evaluation.metrics.tpot.p90_s}


def _more(before: float | None, after: float | None) -> float:
    if before is None or not before:
        return 0.0
    return math.inf if after is None else after / before - 1


def too_close(plan: Plan, evaluation: Evaluation) -> list[str]:
    """Limits that are kept by less than predictions of that metric were off where somebody measured."""
    off: dict[str, float] = {i.metric: i.high for i in plan.intervals}
    said = []
    for result in evaluation.slos:
        high = off.get(result.slo.metric)
        if not result.met or result.value_s is None or high is None or result.value_s * high < result.slo.limit_s:
            continue
        safe = result.slo.model_copy(update={"limit_s": float(f"{0.95 * result.slo.limit_s / high:.2g}")})
        said.append(
            f"{f.slo_name(result.slo)} is {f.percent(1 - result.value_s / result.slo.limit_s)} below its limit, and "
            f"measured times were up to {high:.2f}x the predicted; --slo '{safe}' would plan for that"
        )
    return said


def would_have_won(plan: Plan, entry: Entry) -> str:
    """One unmeasured rival: its price, how much of it is assumed, how it differs from the chosen one."""
    price, _, at = unit_price(entry).partition(" ")
    text = entry.candidate.label
    if at:
        text += f": {price} per 1M output tokens {'at SLO capacity' if at == 'c' else 'at this traffic'}"
    text += f"; {f.percent(min(entry.evaluation.provenance.assumed, 1.0))} of its GPU time is assumed"
    if plan.chosen is not None:
        text += f"; against the chosen: {difference_text(entry.candidate, plan.chosen.candidate)}"
    return text
