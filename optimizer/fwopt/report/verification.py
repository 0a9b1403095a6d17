"""A live replay for people: measured beside promised, how far off, and what made it so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fwopt.report import format as f
from fwopt.report.markdown import cell
from fwopt.report.markdown import table as markdown_table
from fwopt.spec.verification import Cause, Check, Verification

CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    cells: tuple[str, ...]
    """As `head` names them."""


def head(found: Verification) -> tuple[str, ...]:
    """Promised for the whole workload and for the slice; measured; the error; its causes, where looked for."""
    promised = ("promised",) if found.slice.is_whole else ("plan", "slice")
    return (*promised, "measured", "error", *(cause for cause in CAUSES if _looked_for(found, cause)))


def _looked_for(found: Verification, cause: Cause) -> bool:
    return any(cause in check.causes for check in found.checks)


def rows(found: Verification) -> list[Row]:
    return [
        Row(
            c.metric,
            (
                *(() if found.slice.is_whole else (_value(c.promised_whole, c),)),
                *(_value(v, c) for v in (c.promised, c.measured)),
                _signed(c.error),
                *(_factor(c.causes.get(cause)) for cause in CAUSES if _looked_for(found, cause)),
            ),
        )
        for c in found.checks
    ]


def _value(value: float | None, check: Check) -> str:
    if check.unit == "s":
        return f.seconds(value)
    return f.NONE if value is None else f"{f.significant(value)}/s"


def _signed(error: float | None) -> str:
    return f.NONE if error is None else f"{error:+.1%}"


def _factor(log_share: float | None) -> str:
    """What a cause alone makes of the figure: factors multiply to the whole error."""
    if log_share is None:
        return f.NONE
    percent = math.expm1(log_share)
    return "0%" if abs(percent) < 0.005 else f"{percent:+.0%}"


def heading(found: Verification) -> list[str]:
    """What was replayed where, and whether it counts."""
    s = found.slice
    part = "all requests" if s.is_whole else f"requests {s.start:,} to {s.stop:,} of {s.requests:,}"
    version = found.server_version or "version not told"
    worst = f.percent(s.largest_error)
    lines = [
        f"{found.workload}: {part}, on {found.engine.name} ({version}), {found.candidate.label}",
        *([] if s.is_whole else [f"slice against the whole workload, simulated: off by at most {worst}"]),
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
    table.add_column("", no_wrap=True)
    for title in head(found):
        table.add_column(title, justify="right", no_wrap=title not in CAUSES)
    for row in rows(found):
        table.add_row(row.name, *row.cells)
    state = Text("valid", "green") if found.valid else Text("INVALID: nothing may be concluded", "bold red")
    return Group(
        state,
        *(Text(f.plain(line)) for line in heading(found)),
        table,
        *(Text(f"- {f.plain(p)}", "yellow") for p in found.problems),
    )


def markdown(found: Verification) -> str:
    lines = [f"# Measured beside promised: {cell(found.candidate.label)}", ""]
    lines += [f"- {'valid' if found.valid else '**INVALID: nothing may be concluded**'}"]
    lines += [f"- {cell(line)}" for line in (*heading(found), *found.problems)]
    lines += ["", *table(found)]
    if not found.slice.is_whole:
        lines += ["", "`plan`: promised for the whole workload; `slice`: by the same simulation for what was replayed."]
    lines += ["Causes are factors on the figure and multiply to the error (docs/verify.md)."]
    lines += [
        "",
        f"fwopt {found.fwopt_version}, {found.made_at}; "
        + cell("; ".join(f"{k} {v}" for k, v in found.environment.items())),
    ]
    return "\n".join(lines) + "\n"


def table(found: Verification) -> Sequence[str]:
    titles = head(found)
    return markdown_table(["", *titles], ([r.name, *r.cells] for r in rows(found)), range(1, len(titles) + 1))
