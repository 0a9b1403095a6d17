"""`report.md`: the same story for a pull request or a ticket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fwopt.report import format as f
from fwopt.report import live
from fwopt.report.comparison import quality, room, rows
from fwopt.report.facts import (
    baseline_name,
    is_baseline,
    tightest,
    unit_price,
    would_have_won,
)
from fwopt.report.ladder import counts, ladder
from fwopt.report.settings import compare
from fwopt.report.verdict import outcome, verdict
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Entry, Plan

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def cell(text: str) -> str:
    """Text that can break neither a table nor the page."""
    return f.plain(text).translate(_SPECIAL)


def render(plan: Plan, trials: Sequence[Trial]) -> str:
    """The report as Markdown; tables are GitHub's."""
    said = verdict(plan)
    lines = [f"# {cell(outcome(plan))}", ""]
    if outcome(plan) != said.headline:
        lines += [f"**{cell(said.headline)}**", ""]
    lines += [f"- {about}: {cell(text)}" for about, text in said.points]
    lines += [f"- asked for: {cell(str(plan.objective))}"]
    at = f" at {f.factor(plan.rate_scale)} its recorded rate" if plan.rate_scale != 1 else ""
    engine = f"{plan.engine.name} {plan.engine.version}"
    where = f"up to {f.gpus(plan.hardware.count, plan.hardware)}"
    lines += [f"- for: {cell(f'{plan.model.name} with {engine} on {where}, serving {plan.workload}')}{at}"]
    sections = (_promised(plan), _measured(plan), _best(plan), _unmeasured(plan), _search(plan, trials), _inputs(plan))
    for section in sections:
        lines += ["", *section] if section else []
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], body: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """A Markdown table of cells that are escaped here; `right` names right-aligned columns."""
    rules = ["---:" if i in set(right) else "---" for i in range(len(head))]
    lines = [[cell(h) for h in head], rules, *([cell(c) for c in row] for row in body)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _promised(plan: Plan) -> list[str]:
    leader = plan.chosen or plan.nearest_miss
    if leader is None:
        return []
    columns = [("chosen" if plan.chosen else "nearest miss", leader)]
    if plan.baseline is not None and not is_baseline(plan, leader):
        columns.append(("baseline", plan.baseline))
    found = rows([e for _, e in columns])
    lines = ["## Promised, against the limits", ""]
    lines += table(["", "limit", *(name for name, _ in columns)], ([r.name, r.limit, *r.values] for r in found), (1,))
    settings = compare(leader.candidate, columns[-1][1].candidate)
    lines += ["", "## Settings", ""]
    if len(columns) == 1:
        return lines + table(["setting", columns[0][0]], ([s.name, s.here] for s in settings))
    lines += [f"Baseline: {cell(baseline_name(plan))}. Settings in **bold** differ.", ""]
    body = table(["setting", columns[0][0], "baseline"], ([s.name, s.here, s.there] for s in settings))
    bold = [f"| **{cell(s.name)}** | **{cell(s.here)}** | **{cell(s.there)}** |" if s.differs else line
            for s, line in zip(settings, body[2:], strict=True)]  # fmt: skip
    return [*lines, *body[:2], *bold]


def _measured(plan: Plan) -> list[str]:
    if not plan.live:
        return []
    body = (row.cells for row in live.rows(plan))
    return ["## Measured", "", f"{live.basis(plan)}.", "", *table(live.HEAD, body, range(1, len(live.HEAD)))]


def _best(plan: Plan) -> list[str]:
    ranked = [e for e in (plan.chosen, *plan.runners_up) if e is not None][:10]
    if not ranked:
        return []
    head = ["candidate", "id", "GPUs", "tightest SLO", "$/1M output tokens", "SLO capacity", "quality against bf16",
            "GPU time resting on"]  # fmt: skip
    lines = ["## Best found", "", *table(head, map(_ranked, ranked), (2, 4, 5)), ""]
    return [*lines, f"c: at SLO capacity, t: at this traffic. Latencies are {ranked[0].evaluation.source}."]


def _ranked(entry: Entry) -> list[str]:
    limit = tightest(entry.evaluation)
    least = f"{f.slo_name(limit.slo)} {f.seconds(limit.value_s)}, {room(limit)}" if limit else f.NONE
    edge = f.factor(entry.capacity.rate_scale) if entry.capacity else f.NONE
    return [entry.candidate.label, entry.candidate.id, str(entry.candidate.parallelism.gpus), least, unit_price(entry),
            edge, quality(entry.quality), f.provenance(entry.evaluation.provenance)]  # fmt: skip


def _unmeasured(plan: Plan) -> list[str]:
    if not plan.unmeasured:
        return []
    lines = ["## As good or better, but not measured", "", "Not chosen without `--allow-unmeasured`.", ""]
    return lines + [f"- {cell(would_have_won(plan, e))}" for e in plan.unmeasured]


def _search(plan: Plan, trials: Sequence[Trial]) -> list[str]:
    found = counts(plan, trials)
    lines = ["## The search", "", f"{found.text}."]
    steps = ladder(plan, found.considered)
    if steps:
        body = ([f"{r.count:,}", s.rung, r.reason, r.example] for s in steps for r in s.reasons)
        lines += ["", *table(["fell", "rung", "because", "for example"], body, (0,))]
    return lines


def _inputs(plan: Plan) -> list[str]:
    lines = ["## Inputs, pinned by content", ""]
    lines += table(["input", "name", "digest"], ([p.what, p.name, p.digest] for p in plan.inputs))
    price = plan.hardware.price
    if price is not None:
        known = f"{price.basis}, {price.dates}; {price.source}"
        lines += ["", f"Price: {f.usd(price.usd_per_gpu_hour)} per GPU-hour ({cell(known)})."]
    for entry in {e.quality.source: e.quality for e in (plan.chosen, plan.baseline) if e and e.quality}.values():
        lines += ["", f"Quality ({entry.known}): {cell(entry.source)}."]
    lines += ["", f"Operator times: profile {cell(plan.profile)}, by the digest above."]
    if plan.command:
        lines += ["", "To reproduce (TRACE is the file with the workload digest above):", ""]
        lines += ["```sh", f.plain(plan.command), "```"]
    if plan.notes:
        lines += ["", "## Notes", "", *(f"- {cell(note)}" for note in plan.notes)]
    return [*lines, "", f"fwopt {cell(plan.fwopt_version)}, seed {plan.seed}. Words are defined in docs/metrics.md."]
