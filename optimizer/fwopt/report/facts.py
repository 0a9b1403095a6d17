"""What every renderer says, decided once: the verdict, the saving, how a number is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.report.give import what_would_give
from fwopt.report.ladder import AFTER_START
from fwopt.report.settings import difference_text
from fwopt.spec.hardware import Price
from fwopt.spec.outcome import Evaluation, SloResult
from fwopt.spec.plan import Entry, Plan

HOURS_PER_MONTH = 730
"""365 days x 24 h / 12, rounded."""


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line to act on, and the points that a decision needs, most important first."""

    headline: str
    points: tuple[tuple[str, str], ...]
    """(what it is about, what there is to say)."""
    tone: str
    """`good`, `warn` (act with care) or `bad` (nothing to deploy)."""


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
        dates = sorted(f.plain(price.dates).split("; "))
        known += f", {dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}; --price overrides"
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


def outcome(plan: Plan) -> str:
    """The verdict for someone who pays: what changes, in GPUs and dollars; the headline where nothing is saved."""
    cost, saving = unit_cost(plan), month_saving(plan)
    if plan.chosen is None or plan.baseline is None or is_baseline(plan, plan.chosen):
        return verdict(plan).headline
    here, there = plan.chosen.candidate.parallelism.gpus, plan.baseline.candidate.parallelism.gpus
    if plan.baseline.evaluation.feasible and here < there:
        text = f"Serve this traffic on {here} x {f.plain(plan.hardware.device.name).upper()} instead of {there}"
        return f"{text}: {f.usd(saving)} a month less" if saving else text
    if cost is not None and cost.baseline is not None and cost.chosen < cost.baseline:
        return f"Serve this traffic for {cost.margin} per output token {cost.basis}"
    return verdict(plan).headline


_INTERVAL_NAMES = {"ttft": "mean TTFT", "tpot": "mean TPOT", "throughput": "throughput"}


def accuracy(plan: Plan) -> str | None:
    """How far such predictions were off where somebody measured, for example `mean TTFT 0.90-1.15x the predicted`."""
    if not plan.intervals:
        return None
    said = [f"{_INTERVAL_NAMES[i.metric]} {i.low:.2f}-{i.high:.2f}x" for i in plan.intervals]
    fewest = min(i.rows for i in plan.intervals)
    return f"in 80% of {fewest}+ results held out of the fit, measured {f.listing(said)} the predicted"


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


def verdict(plan: Plan) -> Verdict:
    if plan.chosen is None:
        return _nothing(plan)
    chosen = plan.chosen
    headline = f"Deploy {chosen.candidate.label} on {f.gpus(chosen.candidate.parallelism.gpus, plan.hardware)}"
    said = [
        ("cost", _cost(plan)),
        ("GPUs", _gpus(plan)),
        ("headroom", _headroom(chosen)),
        ("quality", _quality(plan, chosen)),
        *(("but", caution) for caution in _cautions(plan)),
        ("known", known(chosen.evaluation)),
        ("error", accuracy(plan)),
        ("price", month_basis(plan) if plan.hardware.price else None),
    ]
    careful = plan.status == "interrupted" or chosen.evaluation.provenance.assumed > 0 or bool(chosen.needs_checkpoint)
    careful = careful or bool(too_close(plan, chosen.evaluation))
    return Verdict(headline, tuple((k, text) for k, text in said if text), "warn" if careful else "good")


def _cost(plan: Plan) -> str | None:
    cost = unit_cost(plan)
    if cost is None:
        missing = "unknown, because no price was given; add --price DOLLARS_PER_GPU_HOUR"
        return None if plan.hardware.price else missing
    text = f"{'at most ' if cost.at_most else ''}{f.usd(cost.chosen)} per 1M output tokens {cost.basis}"
    if cost.baseline is None:
        return f"{text}; the baseline has no such figure" if plan.baseline else text
    text = f"{text}; baseline ({baseline_name(plan)}) {f.usd(cost.baseline)}: {cost.margin}"
    here = traffic_cost(plan) if cost.at_capacity else None
    if here is None or here.baseline is None:
        return text
    return f"{text}. At this traffic {f.usd(here.chosen)}; baseline {f.usd(here.baseline)}: {here.margin}"


def _gpus(plan: Plan) -> str | None:
    if plan.chosen is None:
        return None
    here = plan.chosen.candidate.parallelism.gpus
    if plan.baseline is None:
        return f"{here} for this traffic; no baseline was evaluated"
    if is_baseline(plan, plan.chosen):
        return f"{here}, as before: this is the baseline itself, nothing better was found"
    there = plan.baseline.candidate.parallelism.gpus
    missed = [r for r in plan.baseline.evaluation.slos if not r.met]
    if missed:
        return f"{here}; the baseline, on {there}, misses {f.listing(slo_text(r) for r in missed)}"
    if here == there:
        return f"{here}, as many as the baseline needs for this traffic"
    saving = month_saving(plan)
    text = f"{here} instead of {there} for this traffic"
    return text if saving is None else f"{text}: {f.usd(abs(saving))} a month {'less' if saving > 0 else 'more'}"


def _headroom(entry: Entry) -> str | None:
    edge = entry.capacity
    if edge is None:
        return None
    if edge.limited_by is None:
        return f"every SLO still holds at {f.factor(edge.rate_scale)} this traffic, the highest rate tried"
    return (
        f"every SLO holds up to {f.factor(edge.rate_scale)} this traffic ({f.significant(edge.requests_per_s)} "
        f"requests/s, found within {f.percent(edge.tolerance)}); {f.plain(edge.limited_by)} breaks first"
    )


def _quality(plan: Plan, chosen: Entry) -> str | None:
    """What the saving costs in quality; None where the baseline gives as much up."""
    here, there = chosen.quality, plan.baseline.quality if plan.baseline else None
    if here is None or here.kl <= (there.kl if there else 0.0):
        return None
    known = "assumed, from literature" if here.known == "assumed" else "measured"
    text = f"top-1 {f.percent(here.top1, 1)} and KL {here.kl:.2g} against bf16 ({known})"
    limit = plan.objective.max_quality_drop
    return f"{text}; {f'within {limit}' if limit else '--max-quality-drop would limit it'}"


def _cautions(plan: Plan) -> list[str]:
    said = []
    if plan.status == "interrupted":
        said.append(
            f"the search was interrupted after {f.plural(plan.evaluated, 'evaluation')}: best so far, not of the whole "
            "space; `fwopt tune --resume RUN` goes on"
        )
    chosen = plan.chosen
    said += too_close(plan, chosen.evaluation) if chosen is not None else []
    if chosen is not None and chosen.needs_checkpoint:
        said.append(f"a converted checkpoint must exist first: {f.plain(chosen.needs_checkpoint)}")
    if chosen is not None and chosen.evaluation.provenance.assumed > 0:
        share = f.percent(chosen.evaluation.provenance.assumed)
        said.append(f"{share} of its GPU time rests on assumed operator times, not on measurements")
    if plan.unmeasured:
        one = len(plan.unmeasured) == 1
        rivals = f"{f.plural(len(plan.unmeasured), 'candidate')} as good or better {'rests' if one else 'rest'}"
        allow = f"--allow-unmeasured lets {'it' if one else 'them'} be chosen"
        said.append(f"{rivals} on assumed operator times; {allow}")
    if len(plan.pareto) > 1:
        said.append(f"it is one of {len(plan.pareto)} points on the Pareto front; the others are listed")
    return said


def _nothing(plan: Plan) -> Verdict:
    where = f"{plan.hardware.count} x {f.plain(plan.hardware.device.name).upper()}"
    if plan.status == "interrupted" and plan.nearest_miss is None:
        headline = "No answer yet: the search was interrupted before a candidate met the objective"
        return Verdict(headline, (("next", "`fwopt tune --resume RUN` goes on"),), "bad")
    so_far = plan.status == "interrupted"
    headline = f"{f'Nothing found so far on {where}' if so_far else f'No deployment on {where}'} meets the objective"
    if plan.nearest_miss is None:
        fallen = f.plural(sum(r.count for r in plan.rejected if r.rung not in AFTER_START), "candidate")
        return Verdict(headline, (("why", f"{fallen} fell before simulation, for the reasons below"),), "bad")
    near = plan.nearest_miss
    missed = f.listing(slo_text(r) for r in near.evaluation.slos if not r.met) or "the objective"
    said = [("nearest", f"{near.candidate.label}, on {f.plural(near.candidate.parallelism.gpus, 'GPU')}: {missed}")]
    said += [("either" if i == 0 else "or", way) for i, way in enumerate(what_would_give(plan, near))]
    said.append(("known", known(near.evaluation)))
    return Verdict(headline, tuple(said), "bad")


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
