"""The summary that `fwopt tune` ends with: 80 columns are enough, more are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fwopt.report import format as f
from fwopt.report import live
from fwopt.report.comparison import room, rows
from fwopt.report.facts import baseline_name, is_baseline, tightest, unit_price, would_have_won
from fwopt.report.ladder import counts, ladder
from fwopt.report.plot import plot
from fwopt.report.settings import differences
from fwopt.report.verdict import verdict
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Entry, Plan

WIDE = 118
"""Columns from which tables show their second half."""
_TONE = {"good": "bold green", "warn": "bold yellow", "bad": "bold red"}
PRICE_BASIS = "$/1M output tokens: c at SLO capacity, t at this traffic"


def render(plan: Plan, trials: Sequence[Trial], console: Console, files: Sequence[Path] = ()) -> None:
    """Print the whole summary; `files` are named at the end as what to open."""
    _asked(plan, console)
    _verdict(plan, console)
    _comparison(plan, console)
    _live(plan, console)
    _settings(plan, console)
    _front(plan, trials, console)
    _top(plan, trials, console)
    _fallen(plan, trials, console)
    _unmeasured(plan, console)
    _notes(plan, console)
    if files:
        _title("Open", console)
        for path in files:
            console.print(Text(f"  {f.plain(str(path))}"), soft_wrap=True)


def _title(text: str, console: Console, more: str = "") -> None:
    console.print()
    console.print(Text.assemble((text, "bold"), (f"  {more}" if more else "", "dim")))


def _bullets(lines: Sequence[str], console: Console, style: str = "") -> None:
    for line in lines:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=3, justify="right")
        grid.add_column(overflow="fold")
        grid.add_row("-", Text(f.plain(line), style=style))
        console.print(grid)


def _asked(plan: Plan, console: Console) -> None:
    at = f" at {f.factor(plan.rate_scale)} its recorded rate" if plan.rate_scale != 1 else ""
    engine = f"{f.plain(plan.engine.name)} {f.plain(plan.engine.version)}"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    leader = plan.chosen or plan.nearest_miss or plan.baseline
    asked = f", {leader.evaluation.metrics.requests:,} requests" if leader else ""
    grid.add_row("workload", Text(f"{f.plain(plan.workload)}{at}{asked}"))
    grid.add_row(
        "target", Text(f"{f.plain(plan.model.name)} on up to {f.gpus(plan.hardware.count, plan.hardware)}, {engine}")
    )
    grid.add_row("objective", Text(str(plan.objective)))
    console.print()
    console.print(grid)


def _verdict(plan: Plan, console: Console) -> None:
    said = verdict(plan)
    console.print()
    console.print(Text(said.headline, style=_TONE[said.tone]))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for about, text in said.points:
        grid.add_row(Text(f"  {about}"), Text(text, style="yellow" if about == "but" else ""))
    console.print(grid)


def _comparison(plan: Plan, console: Console) -> None:
    leader = plan.chosen or plan.nearest_miss
    shown = [(("chosen" if plan.chosen else "nearest miss"), leader)] if leader else []
    if plan.baseline is not None and not is_baseline(plan, leader):
        shown.append(("baseline", plan.baseline))
    if not shown:
        return
    wide = console.width >= WIDE
    more = f"baseline: {baseline_name(plan)}, {plan.baseline.candidate.label}" if plan.baseline else ""
    _title("Promised", console, more)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", style="dim", overflow="fold", max_width=36 if wide else 18)
    table.add_column("limit", no_wrap=True, justify="right")
    for name, _ in shown:
        table.add_column(name, overflow="fold")
    for row in rows([e for _, e in shown]):
        if wide or row.limit or row.essential:
            cells = [Text(v, style=_met_style(m)) for v, m in zip(row.values, row.met, strict=True)]
            table.add_row(Text(row.name), Text(row.limit), *cells)
    console.print(table)


def _live(plan: Plan, console: Console) -> None:
    if not plan.live:
        return
    _title("Measured", console, live.basis(plan))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in live.HEAD:
        table.add_column(name, overflow="fold", justify="left" if name == "candidate" else "right")
    for row in live.rows(plan):
        table.add_row(*(Text(cell) for cell in row.cells), style="bold" if row.chosen else "")
    console.print(table)


def _met_style(met: bool | None) -> str:
    return "" if met is None else "green" if met else "red"


def _settings(plan: Plan, console: Console) -> None:
    leader = plan.chosen or plan.nearest_miss
    if leader is None or plan.baseline is None or is_baseline(plan, leader):
        return
    _title("Settings that differ from the baseline", console)
    changed = [f"{s.name} {s.there} -> {s.here}" for s in differences(leader.candidate, plan.baseline.candidate)]
    console.print(Padding(Text(";  ".join(changed)), (0, 0, 0, 2)))


def _front(plan: Plan, trials: Sequence[Trial], console: Console) -> None:
    drawn = plot(plan, trials, min(console.width - 2, 100))
    if drawn is None:
        return
    _title("Trade-off", console, drawn.title)
    for line in drawn.lines:
        console.print(Text.assemble(*line), no_wrap=True, crop=True)


def _top(plan: Plan, trials: Sequence[Trial], console: Console) -> None:
    ranked = [e for e in (plan.chosen, *plan.runners_up) if e is not None][:10]
    if not ranked:
        return
    wide = console.width >= WIDE
    number = {t.candidate.id: f"#{t.number}" for t in reversed(trials) if t.role != "capacity"}
    _title("Best found", console, PRICE_BASIS if any(e.evaluation.cost for e in ranked) else "")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("candidate", overflow="fold", min_width=26)
    for name in ["GPUs", "tightest SLO", "$/1M", *(["capacity", "quality", "bound + assumed"] if wide else [])]:
        table.add_column(name, justify="right", no_wrap=wide or name != "tightest SLO")
    for rank, entry in enumerate(ranked):
        cells = [number.get(entry.candidate.id, entry.candidate.id[:8]), *_top_cells(entry, wide)]
        table.add_row(*(Text(c) for c in cells), style="bold" if rank == 0 else "")
    console.print(table)


def _top_cells(entry: Entry, wide: bool) -> list[str]:
    limit, edge, shares = tightest(entry.evaluation), entry.capacity, entry.evaluation.provenance
    least = f.NONE
    if limit is not None:
        least = f"{f.slo_name(limit.slo)} {f.seconds(limit.value_s)}" + (f", {room(limit)}" if wide else "")
    cells = [entry.candidate.label, str(entry.candidate.parallelism.gpus), least, unit_price(entry)]
    if wide:
        known = f"{f.percent(entry.quality.top1, 1)} {entry.quality.known}" if entry.quality else f.NONE
        weak = f.percent(min(shares.bound + shares.assumed, 1.0))
        cells += [f.factor(edge.rate_scale) if edge else f.NONE, known, weak]
    return cells


def _fallen(plan: Plan, trials: Sequence[Trial], console: Console) -> None:
    found = counts(plan, trials)
    _title("The search", console, found.text)
    if not plan.rejected:
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("fell", justify="right")
    table.add_column("rung")
    table.add_column("because", overflow="fold")
    table.add_column("for example", overflow="fold", style="dim")
    for step in ladder(plan, found.considered):
        for reason in step.reasons:
            table.add_row(f"{reason.count:,}", Text(f.plain(step.rung)), Text(f.plain(reason.reason)),
                          Text(f.plain(reason.example)))  # fmt: skip
    console.print(table)


def _unmeasured(plan: Plan, console: Console) -> None:
    if not plan.unmeasured:
        return
    _title("As good or better, but not measured", console, "--allow-unmeasured lets these be chosen")
    lines = [would_have_won(plan, entry) for entry in plan.unmeasured]
    _bullets(lines, console)


def _notes(plan: Plan, console: Console) -> None:
    if plan.notes:
        _title("Notes", console)
        _bullets(plan.notes, console)
