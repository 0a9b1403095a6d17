"""The four figures of the first screen, for whoever pays and whoever is on call."""

from __future__ import annotations

from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.report.comparison import room
from fwopt.report.facts import is_baseline, month_saving, unit_cost, usd_per_month
from fwopt.spec.plan import Plan


@dataclass(frozen=True, slots=True)
class Tile:
    label: str
    value: str
    under: str
    evidence: str
    """Anchor of the section that the figure rests on."""
    tone: str = ""


def tiles(plan: Plan) -> list[Tile]:
    if plan.chosen is None:
        return _misses(plan)
    return [t for t in (_unit(plan), _month(plan), _gpus(plan), _headroom(plan)) if t is not None]


def _unit(plan: Plan) -> Tile | None:
    cost = unit_cost(plan)
    if cost is None:
        return None
    value = f"{'≤ ' if cost.at_most else ''}{f.usd(cost.chosen)}"
    under = "no baseline to compare with"
    if cost.baseline is not None:
        same = is_baseline(plan, plan.chosen)
        under = "this is the baseline" if same else f"baseline {f.usd(cost.baseline)}: {cost.margin}"
    cheaper = cost.baseline is not None and cost.chosen < cost.baseline
    return Tile(f"per 1M output tokens, {cost.basis}", value, under, "price", "good" if cheaper else "")


def _month(plan: Plan) -> Tile | None:
    here, there = usd_per_month(plan.chosen), usd_per_month(plan.baseline)
    if here is None:
        return None
    saving = month_saving(plan)
    if saving is None or there is None:
        why = "no baseline" if plan.baseline is None else "the baseline misses an SLO"
        return Tile("a month for this traffic", f.usd(here), f"no saving claimed: {why}", "price")
    if abs(saving) < 0.5:
        return Tile("a month for this traffic", f.usd(here), "as much as the baseline", "price")
    word = "saved a month, same traffic" if saving > 0 else "more a month, same traffic"
    return Tile(
        word, f.usd(abs(saving)), f"{f.usd(here)} instead of {f.usd(there)}", "price", "good" if saving > 0 else ""
    )


def _gpus(plan: Plan) -> Tile | None:
    if plan.chosen is None:
        return None
    under = f"of {plan.hardware.count} at hand"
    if plan.baseline is not None and not is_baseline(plan, plan.chosen):
        under = f"baseline {plan.baseline.candidate.parallelism.gpus}, {under}"
    return Tile("GPUs", str(plan.chosen.candidate.parallelism.gpus), under, "settings")


def _headroom(plan: Plan) -> Tile | None:
    edge = plan.chosen.capacity if plan.chosen else None
    if edge is None:
        return None
    limit = f"{f.plain(edge.limited_by)} breaks first" if edge.limited_by else "the highest rate tried"
    value = f"{'≥ ' if edge.limited_by is None else ''}{f.factor(edge.rate_scale)}"
    return Tile("this traffic before an SLO breaks", value, limit, "evidence-chosen")


def _misses(plan: Plan) -> list[Tile]:
    if plan.nearest_miss is None:
        return []
    return [
        Tile(f"{f.slo_name(r.slo)}, limit {f.seconds(r.slo.limit_s)}", f.seconds(r.value_s), room(r),
             "evidence-chosen", "good" if r.met else "bad")
        for r in plan.nearest_miss.evaluation.slos
    ]  # fmt: skip
