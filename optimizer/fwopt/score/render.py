"""The summary of a scoring as text."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fwopt.errors import plain
from fwopt.score.run import METRICS


def render(summary: dict[str, Any]) -> RenderableType:
    """Overall first, then groups, then what was not scored or is excluded, and why."""
    parts: list[RenderableType] = [Text(f"{summary['scored']} of {summary['rows']} rows scored")]
    table = _table()
    for part, title in (("all_rows", "all scored rows"), ("without_excluded", "without excluded rows")):
        for family in ("all", "dense", "moe"):
            _row(table, f"{title}: {family}", summary[part][family])
    for group in summary["groups"]:
        name = " ".join(str(v) for k, v in group.items() if k not in ("all_rows", "without_excluded"))
        _row(table, name, group["without_excluded"] if group["without_excluded"]["rows"] else group["all_rows"])
    parts.append(table)
    parts += [Text(f"excluded {count['rows']:4}  {name}: {count['reason']}", "dim")
              for name, count in summary["excluded"].items() if count["rows"]]  # fmt: skip
    parts += [Text(f"unscored {count:4}  {reason}", "dim") for reason, count in summary["unscored"].items()]
    return Group(*parts)


def _table() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("median / mean absolute error, bias, share inside the 80 % interval")
    table.add_column("rows", justify="right")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    return table


def _row(table: Table, name: str, group: dict[str, Any]) -> None:
    cells = []
    for metric in METRICS:
        found = group[metric]
        shown = f"{found['median_abs']:.1%} / {found['mean_abs']:.1%}, {found['bias']:+.1%}" if found else "-"
        inside = found["inside_interval"] if found else None
        cells.append(shown + (f", {inside:.0%}" if inside is not None else ""))
    table.add_row(Text(plain(name)), str(group["rows"]), *cells)
