"""The verdict: one line to act on and the points behind it, the same in every renderer."""

from __future__ import annotations

from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.report.facts import (
    accuracy,
    baseline_name,
    drift,
    is_baseline,
    known,
    month_basis,
    month_saving,
    slo_text,
    too_close,
    traffic_cost,
    unit_cost,
)
from fwopt.report.give import what_would_give
from fwopt.report.ladder import AFTER_START
from fwopt.spec.plan import Entry, Plan


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line to act on, and the points that a decision needs, most important first."""

    headline: str
    points: tuple[tuple[str, str], ...]
    """(what it is about, what there is to say)."""
    tone: str
    """`good`, `warn` (act with care) or `bad` (nothing to deploy)."""


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


def verdict(plan: Plan) -> Verdict:
    if plan.chosen is None:
        return _nothing(plan)
    chosen = plan.chosen
    headline = f"Deploy {chosen.candidate.label} on {f.gpus(chosen.candidate.parallelism.gpus, plan.hardware)}"
    said = [
        ("cost", _cost(plan)),
        ("GPUs", _gpus(plan)),
        ("headroom", _headroom(chosen)),
        ("drift", drift(chosen)),
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
    limit = ", ".join(str(limit) for limit in plan.objective.quality_limits)
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
