"""A GitHub step summary: the verdict, a line a metric with its interval drawn, what moved, what to know."""

from __future__ import annotations

from fwopt.regress.outputs import words
from fwopt.spec.comparison import Comparison, MetricVerdict


def markdown(c: Comparison) -> str:
    lines = [f"## {words.MARKS[c.verdict]} fwopt bench: {_cell(words.headline(c))}", ""]
    lines += [
        "| | bench | metric | base | head | change for the worse | minimum effect | blocks | why |",
        "|---|---|---|---:|---:|---|---|---:|---|",
        *(_row(m) for m in c.metrics),
        "",
    ]
    charts = [(m, words.chart(m)) for m in c.metrics]
    drawn = [(f"{m.bench} {m.metric}", line, words.signed(m.effect)) for m, line in charts if line]
    if drawn:
        wide = max(len(name) for name, _, _ in drawn)
        lines += ["```", f"{'':<{wide}}  better {'':<{words.WIDTH - 13}}worse   (: none, | minimum effect, o found)"]
        lines += [f"{name:<{wide}}  {line} {effect}" for name, line, effect in drawn]
        lines += ["```", ""]
    for bench, parts in c.explanation.items():
        if not any(m.bench == bench and (m.verdict != "pass" or m.improved) for m in c.metrics):
            continue
        lines += [f"**What moved in {_cell(bench)}**", "", *(f"* {_cell(words.part(p))}" for p in parts[:6]), ""]
    lines += [f"* {_cell(note)}" for note in c.notes]
    return "\n".join(lines).rstrip() + "\n"


def _row(m: MetricVerdict) -> str:
    cells = (
        words.MARKS[m.verdict] + (" better" if m.improved else ""), m.bench, m.metric, words.value(m.base, m.unit),
        words.value(m.head, m.unit), words.change(m), words.least(m), str(m.blocks), m.reason,
    )  # fmt: skip
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """One line that a table can hold."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
