"""One HTML file that needs nothing else: no network, no fonts, no script library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fwopt.report import format as f
from fwopt.report import live
from fwopt.report.charts import scatter
from fwopt.report.comparison import quality, room, rows
from fwopt.report.facts import (
    baseline_name,
    is_baseline,
    month_basis,
    tightest,
    unit_cost,
    unit_price,
    would_have_won,
)
from fwopt.report.front import MEANINGS, front
from fwopt.report.glossary import TERMS
from fwopt.report.ladder import counts, ladder
from fwopt.report.settings import compare
from fwopt.report.tiles import tiles
from fwopt.report.trials import listed
from fwopt.report.verdict import outcome, verdict
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Entry, Plan
from fwopt.spec.provenance import CODES, ProvenanceShares

_WORD = re.compile(r"(?<![\w-])(" + "|".join(sorted(map(re.escape, TERMS), key=len, reverse=True)) + r")(?![\w-])")


@dataclass(frozen=True, slots=True)
class Column:
    """One entry of the comparison."""

    name: str
    entry: Entry
    anchor: str


def render(plan: Plan, trials: Sequence[Trial]) -> str:
    """The report as a complete document, under 300 KB whatever the number of trials."""
    found = front(plan, trials)
    table, left_out = listed(plan, trials)
    columns = _columns(plan)
    searched = counts(plan, trials)
    return _environment().get_template("report.html.j2").render(
        plan=plan,
        outcome=outcome(plan),
        verdict=verdict(plan),
        points=_points(plan),
        tiles=tiles(plan),
        columns=columns,
        rows=rows([c.entry for c in columns]),
        live_head=live.HEAD,
        live_rows=live.rows(plan),
        live_basis=live.basis(plan),
        settings=compare(columns[0].entry.candidate, columns[-1].entry.candidate) if columns else [],
        front=found,
        chart=scatter(found, {row.number for row in table}),
        legend=[(k, MEANINGS[k]) for k in MEANINGS if any(p.kind == k for p in found.points)],
        steps=ladder(plan, searched.considered),
        searched=searched,
        ranked=[e for e in (plan.chosen, *plan.runners_up) if e is not None][:10],
        numbers={t.candidate.id: t.number for t in reversed(trials) if t.role != "capacity"},
        unmeasured=[would_have_won(plan, e) for e in plan.unmeasured],
        trials=table,
        left_out=left_out,
        baseline_name=baseline_name(plan),
        month_basis=month_basis(plan),
        terms=TERMS,
    )  # fmt: skip


def _points(plan: Plan) -> list[tuple[str, str]]:
    """The verdict's points that no tile says already."""
    told = {"headroom"} | ({"cost"} if unit_cost(plan) else set()) if tiles(plan) else set()
    return [(about, text) for about, text in verdict(plan).points if about not in told]


def _columns(plan: Plan) -> list[Column]:
    leader = plan.chosen or plan.nearest_miss
    found = [Column("chosen" if plan.chosen else "nearest miss", leader, "chosen")] if leader else []
    if plan.baseline is not None and not is_baseline(plan, leader):
        found.append(Column("baseline", plan.baseline, "baseline"))
    return found


def terms(text: str) -> Markup:
    """Text with each known word explained on hover and linked to the glossary."""
    parts, end = [], 0
    for match in _WORD.finditer(text):
        word = match[0]
        link = Markup('<a class="term" href="#term-{}" title="{}">{}</a>').format(slug(word), TERMS[word], word)
        parts += [escape(text[end : match.start()]), link]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def mix(found: ProvenanceShares) -> str:
    """CSS stops of the small provenance bar: where each kind of evidence ends."""
    m, i, b = found.measured, found.measured + found.interpolated, found.measured + found.interpolated + found.bound
    return f"--a:{m:.0%};--b:{i:.0%};--c:{b:.0%}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def shares(found: ProvenanceShares) -> list[tuple[str, float, str]]:
    """(kind, percent, text) of each kind present, strongest evidence first."""
    parts = [(code, min(getattr(found, code), 1.0)) for code in CODES]
    return [(code, share * 100, f.percent(share)) for code, share in parts if share > 0]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fwopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = (f.seconds, f.usd, f.factor, f.plain, f.count, f.slo_name, f.provenance)
    functions: list[Callable[..., Any]] = [*shown, room, quality, tightest, unit_price, terms, slug, shares, mix]
    environment.filters.update({function.__name__: function for function in functions})
    return environment
