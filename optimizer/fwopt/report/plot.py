"""The trade-off in characters: GPUs (or the first goal) against the tightest limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fwopt.report.front import Front, Kind, Point, front
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Plan

ROWS = 12
MARKS: dict[Kind, tuple[str, str, str]] = {
    "chosen": ("C", "bold green", "chosen"),
    "baseline": ("B", "bold cyan", "baseline"),
    "nearest": ("N", "bold yellow", "nearest miss"),
    "unmeasured": ("u", "yellow", "unmeasured"),
    "front": ("o", "green", "Pareto front"),
    "met": (".", "", "keeps every SLO"),
    "missed": ("x", "dim", "misses one"),
}
Line = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    lines: list[Line]


def plot(plan: Plan, trials: Sequence[Trial], width: int) -> Plot | None:
    """Lines of styled text no wider than `width`; None when there is nothing to compare."""
    found = front(plan, trials)
    if len(found.points) < 2:
        return None
    labels = _labels(found)
    margin = max(len(label) for label in labels.values()) + 2
    columns = width - margin - 2
    cells = _cells(found, columns)
    limit = _row(found, found.y.limit) if found.y.limit is not None else None
    lines: list[Line] = []
    for row in range(ROWS):
        line: Line = [(labels.get(row, "").rjust(margin), "dim"), (" |", "dim")]
        rule = "-" if row == limit else " "
        for column in range(columns):
            mark, style = cells.get((row, column), (rule, "red" if row == limit else ""))
            line.append((mark, style))
        lines.append(line)
    lines.append([(" " * margin + " +" + "-" * columns, "dim")])
    lines.append([(" " * (margin + 2) + _ticks(found, columns), "dim")])
    lines.append(_legend(found, margin))
    left = f"; {found.left_out} without a finite value left out" if found.left_out else ""
    scale = ", log scale" if found.log_y else ""
    return Plot(f"{found.y.name}{scale} (up) against {found.x.name} (across){left}", lines)


def _span(found: Front) -> tuple[float, float]:
    """Lowest and highest y drawn; the limit is always in sight."""
    low = found.floor if found.log_y else min(0.0, found.floor)
    return low, found.ceiling if found.ceiling > low else low + 1.0


def _row(found: Front, y: float) -> int:
    low, high = _span(found)
    y = min(y, high)
    share = math.log(y / low) / math.log(high / low) if found.log_y else (y - low) / (high - low)
    return round((ROWS - 1) * (1 - share))


def _labels(found: Front) -> dict[int, str]:
    low, high = _span(found)
    labels = {0: f"{'>= ' if found.clipped else ''}{found.y.show(high)}", ROWS - 1: found.y.show(low)}
    if found.y.limit is not None:
        row = _row(found, found.y.limit)
        labels = {r: text for r, text in labels.items() if abs(r - row) > 0} | {
            row: f"limit {found.y.show(found.y.limit)}"
        }
    return labels


def _x_span(found: Front) -> tuple[float, float]:
    xs = [p.x for p in found.points]
    low, high = min(xs), max(xs)
    pad = 0.04 * (high - low) or max(0.5, 0.1 * abs(low))
    return low - pad, high + pad


def _column(found: Front, x: float, columns: int) -> int:
    low, high = _x_span(found)
    return round((columns - 1) * (x - low) / (high - low))


def _cells(found: Front, columns: int) -> dict[tuple[int, int], tuple[str, str]]:
    """Marks by place. Chosen and baseline are always drawn: taken places send them to the nearest free column."""
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    top: set[tuple[int, int]] = set()
    for point in found.points:
        at = (_row(found, point.y), _column(found, point.x, columns))
        if point.kind in ("chosen", "baseline", "nearest"):
            while at in top:
                at = (at[0], at[1] + 1 if at[1] + 1 < columns else at[1] - 2)
            top.add(at)
        mark, style, _ = MARKS[point.kind]
        cells[at] = (mark, style)
    return cells


def _ticks(found: Front, columns: int) -> str:
    xs = sorted({p.x for p in found.points})
    if len(xs) > 9:
        low, high = xs[0], xs[-1]
        xs = [low + (high - low) * i / 4 for i in range(5)]
    line = [" "] * columns
    free_from = 0
    for x in xs:
        text = found.x.show(x)
        start = min(max(0, _column(found, x, columns) - len(text) // 2), columns - len(text))
        if start >= free_from:
            line[start : start + len(text)] = text
            free_from = start + len(text) + 1
    return "".join(line).rstrip()


def _legend(found: Front, margin: int) -> Line:
    present: list[Point] = list(found.points)
    line: Line = [("  ", "")]
    for kind, (mark, style, name) in MARKS.items():
        if any(p.kind == kind for p in present):
            line += [(mark, style), (f" {name}  ", "dim")]
    return line
