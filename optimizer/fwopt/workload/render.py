"""An `Inspection` on the terminal; fits 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fwopt.errors import plain
from fwopt.workload.arrivals import Peak
from fwopt.workload.inspection import Inspection
from fwopt.workload.summary import Lengths, NameShare, Statistics

_MARKS = "▁▂▃▄▅▆▇█"
_SHOWN_NAMES = 6


def render(found: Inspection) -> RenderableType:
    s = found.statistics
    parts: list[RenderableType] = [_title(s), *_arrivals(s), Text(), _lengths(s)]
    if s.rate.peaks:
        parts += [Text(), _peaks(s.rate.peaks)]
    parts += [Text(), _facts(s)]
    if len(s.models) > 1:
        parts += [Text(), _names("model", s.models)]
    if len(s.adapters) > 1:
        parts += [Text(), _names("adapter", s.adapters)]
    parts += _said(found)
    return Group(*parts)


def _title(s: Statistics) -> Text:
    text = Text()
    text.append(plain(s.name), style="bold")
    text.append(f"  {s.source_format}", style="cyan")
    return text.append(f"  {s.requests:,} request{'s'[: s.requests != 1]} in {duration(s.duration_s)}")


def _arrivals(s: Statistics) -> list[RenderableType]:
    rate = s.rate
    if rate.mean_per_s is None:
        return []
    top = max(rate.series_per_s)
    cv = f"   gap CV {rate.gap_cv:.2f} [dim](Poisson 1)[/]" if rate.gap_cv is not None else ""
    spread = ", ".join(f"{d.index:.3g} at {_span(d.window_s)}" for d in rate.dispersion)
    lines = [
        f"[bold cyan]Arrivals[/]  {_number(rate.mean_per_s)} requests/s{cv}",
        f"  [green]{sparkline(rate.series_per_s)}[/]",
        f"  [dim]a mark is {_span(rate.series_window_s)}, the highest {_number(top)}/s[/]",
    ]
    if spread:
        lines.append(f"  [dim]variance/mean: {spread}[/]")
    return [Text(), Text.from_markup("\n".join(lines))]


def _lengths(s: Statistics) -> RenderableType:
    table = _table("Tokens", "mean", "p50", "p90", "p95", "p99", "max", "total")
    for name, row in (("prompt", s.prompt_tokens), ("output", s.output_tokens)):
        table.add_row(name, *_length_cells(row))
    return table


def _length_cells(row: Lengths) -> list[str]:
    whole = (row.p50, row.p90, row.p95, row.p99, row.max)
    return [f"{row.mean:,.0f}", *(f"{v:,}" for v in whole), _short(row.total)]


def _peaks(peaks: tuple[Peak, ...]) -> RenderableType:
    table = _table("Size for", "from", "requests/s", "x mean", "prompt tok/s", "output tok/s")
    for p in peaks:
        tokens = (f"{p.prompt_tokens_per_s:,.0f}", f"{p.output_tokens_per_s:,.0f}")
        busiest = f"busiest {_span(p.window_s)}"
        table.add_row(busiest, duration(p.start_s), _number(p.requests_per_s), f"{p.over_mean:.1f}", *tokens)
    return table


def _facts(s: Statistics) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    if s.prefix:
        p = s.prefix
        table.add_row(
            "Prefixes",
            f"{_percent(p.hit_share)} of prompt tokens would hit an infinite prefix cache; "
            f"{_percent(p.hit_requests_share)} of requests share a beginning; "
            f"it would hold {p.unique_blocks:,} blocks of {p.block_tokens}, {_short(p.working_set_tokens)} tokens",
        )
    if s.sessions:
        x = s.sessions
        table.add_row("Sessions", f"{x.sessions:,}, {x.turns_mean:.1f} turns on average, at most {x.turns_max:,}")
    limits = f"; max_tokens known for {s.limited_share:.0%}" if s.limited_share else ""
    tools = f"; {s.tools_share:.0%} offer tools" if s.tools_share else ""
    table.add_row("Context", f"longest request {s.max_context_tokens:,} tokens, prompt and output{limits}{tools}")
    if s.concurrency:
        c = s.concurrency
        pace = f"if every token took {c.tpot_s * 1e3:.0f} ms (Little's law)"
        table.add_row("In flight", f"about {_number(c.mean)}, {_number(c.peak)} in the busiest minute, {pace}")
    clock = f"{_percent(s.grain.distinct_share)} of arrival times are distinct"
    if s.grain.tick_s and s.grain.tick_s >= 1e-3:
        clock = f"ticks of {_span(s.grain.tick_s)}; {clock}, at most {s.grain.most_at_once} at once"
    table.add_row("Clock", clock)
    table.add_row("Digest", s.digest)
    if len(s.models) == 1:
        table.add_row("Model", Text(plain(s.models[0].name or "")))
    return table


def _names(what: str, shares: tuple[NameShare, ...]) -> RenderableType:
    table = _table(what.capitalize(), "requests", "prompt tokens", "output tokens")
    for share in shares[:_SHOWN_NAMES]:
        cells = (f"{v:,}" for v in (share.requests, share.prompt_tokens, share.output_tokens))
        table.add_row(Text(plain(share.name)) if share.name else "none named", *cells)
    if len(shares) > _SHOWN_NAMES:
        table.add_row(f"and {len(shares) - _SHOWN_NAMES} more", f"{sum(x.requests for x in shares[_SHOWN_NAMES:]):,}")
    return table


def _said(found: Inspection) -> list[RenderableType]:
    lines = [Text(f"! {remark}", style="yellow") for remark in found.remarks]
    lines += [Text(f"- {plain(note)}", style="dim") for note in found.notes]
    if found.skipped_count:
        lines.append(Text(f"! left out {found.skipped_count:,} bad of {found.lines:,} lines:", style="bold red"))
        lines += [Text(f"    {count:,} x {plain(rule)}", style="red") for rule, count in found.skipped_by_rule.items()]
        lines += [Text(f"    {plain(error)}", style="dim") for error in found.skipped_first[:3]]
    return [Text(), *lines] if lines else []


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first, header_style="bold cyan", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def sparkline(values: tuple[float, ...]) -> str:
    """One mark a value from zero to the highest; a dot where nothing arrived."""
    top = max(values)
    return "".join(_MARKS[min(int(v / top * len(_MARKS)), len(_MARKS) - 1)] if v > 0 else "·" for v in values)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    """Never 100 % for less than all, nor 0 % for more than nothing."""
    text = f"{share * 100:.1f} %"
    if share < 1 and text == "100.0 %":
        return ">99.9 %"
    return "<0.1 %" if share > 0 and text == "0.0 %" else text


def _short(value: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            return f"{value / (1000 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,}"
