"""A live replay for people: measured beside promised, how far off, and what made it so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fwopt.report import format as f
from fwopt.report.markdown import cell
from fwopt.report.markdown import table as markdown_table
from fwopt.spec.verification import Check, Verification

SMALL = 0.01
"""Causes that move a figure by less are not named."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    whole: str
    promised: str
    measured: str
    error: str
    causes: str


def rows(found: Verification) -> list[Row]:
    return [
        Row(c.metric, _value(c.promised_whole, c), _value(c.promised, c), _value(c.measured, c), _signed(c.error),
            causes(c))
        for c in found.checks
    ]  # fmt: skip


def _value(value: float | None, check: Check) -> str:
    if check.unit == "s":
        return f.seconds(value)
    return f.NONE if value is None else f"{f.significant(value)} {check.unit}"


def _signed(error: float | None) -> str:
    return f.NONE if error is None else f"{error:+.1%}"


def causes(check: Check) -> str:
    """`step time +6%, rest -2%`: largest first, as factors on the figure; they multiply to the whole error."""
    named = sorted(check.causes.items(), key=lambda item: -abs(item[1]))
    return ", ".join(f"{name} {math.expm1(v):+.0%}" for name, v in named if abs(v) >= SMALL) or f.NONE


def heading(found: Verification) -> list[str]:
    """What was replayed where, and whether it counts."""
    s = found.slice
    part = f"requests {s.start:,} to {s.stop:,} of {s.requests:,}" if s.stop - s.start < s.requests else "all requests"
    version = found.server_version or "version not told"
    lines = [
        f"{found.workload}: {part}, on {found.engine.name} ({version}), {found.candidate.label}",
        f"slice against the whole workload, simulated: off by at most {f.percent(s.largest_error)}",
        f"prefix cache at the start: {found.cache}",
        f"sending: {found.sending.requests:,} requests, p99 {f.seconds(found.sending.lag_p99_s)} after their time",
    ]
    if found.step_factor is not None:
        lines.append(f"engine steps took {f.significant(found.step_factor)} times as long as promised")
    lost = found.measured.requests - found.measured.finished
    if lost:
        why = ", ".join(f"{count:,} {reason}" for reason, count in found.measured.rejected.items())
        lines.append(f"{lost:,} of {found.measured.requests:,} requests got no answer: {why}")
    return lines


def render(found: Verification) -> RenderableType:
    """Terminal text."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for title in ("", "plan", "slice", "measured", "error"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    table.add_column("because", overflow="fold")
    for row in rows(found):
        table.add_row(row.name, row.whole, row.promised, row.measured, row.error, row.causes)
    state = Text("valid", "green") if found.valid else Text("INVALID: nothing may be concluded", "bold red")
    return Group(
        state, *(Text(line) for line in heading(found)), table, *(Text(f"- {p}", "yellow") for p in found.problems)
    )


def markdown(found: Verification) -> str:
    lines = [f"# Measured beside promised: {cell(found.candidate.label)}", ""]
    lines += [f"- {'valid' if found.valid else '**INVALID: nothing may be concluded**'}"]
    lines += [f"- {cell(line)}" for line in (*heading(found), *found.problems)]
    lines += ["", *table(found)]
    lines += ["", "`plan`: promised for the whole workload; `slice`: by the same simulation for what was replayed."]
    lines += ["Causes are factors on the figure and multiply to the error (docs/live.md)."]
    lines += [
        "",
        f"fwopt {found.fwopt_version}, {found.made_at}; "
        + cell("; ".join(f"{k} {v}" for k, v in found.environment.items())),
    ]
    return "\n".join(lines) + "\n"


def table(found: Verification) -> Sequence[str]:
    head = ["", "plan", "slice", "measured", "error", "because"]
    body = ([r.name, r.whole, r.promised, r.measured, r.error, r.causes] for r in rows(found))
    return markdown_table(head, body, (1, 2, 3, 4))
