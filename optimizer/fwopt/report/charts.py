"""The trade-off as inline SVG; colours come from the page's CSS, so light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fwopt.report.front import MEANINGS, Front, Point

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 22, 46
MAX_POINTS = 300
SPREAD = 11.0
"""Points of one GPU count lie beside each other within this many pixels, so that they can be told apart."""
RADIUS = {"chosen": 7.5, "baseline": 6.5, "nearest": 7, "unmeasured": 5, "front": 5, "met": 3.5, "missed": 3}


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    log: bool
    start: float
    end: float

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def scatter(found: Front, listed: Container[int]) -> Markup:
    """Candidates as points that lead to their rows (trial numbers `listed`); empty when there is nothing to compare."""
    if len(found.points) < 2:
        return Markup()
    x, y = _x_scale(found), _y_scale(found)
    shown = found.points[-MAX_POINTS:]
    parts = [_frame(found, y), _x_axis(found, x), _limit(found, y)]
    parts += [_dot(found, p, x, y, listed) for p in shown]
    parts += [_name(p, x, y) for p in shown if p.kind in ("chosen", "baseline", "nearest")]
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{} against {}">{}</svg>'
    ).format(WIDTH, HEIGHT, found.y.name, found.x.name, Markup("").join(parts))  # fmt: skip


def _x_values(found: Front) -> list[float]:
    return sorted({p.x for p in found.points})


def _x_scale(found: Front) -> _Scale:
    xs = _x_values(found)
    pad = 0.07 * (xs[-1] - xs[0]) or max(0.5, 0.1 * abs(xs[0]))
    return _Scale(xs[0] - pad, xs[-1] + pad, False, LEFT, WIDTH - RIGHT)


def _y_scale(found: Front) -> _Scale:
    low = found.floor / 1.15 if found.log_y else min(0.0, found.floor)
    high = found.ceiling if found.ceiling > low else low + 1
    return _Scale(low, high * (1.0 if found.clipped else 1.06), found.log_y, HEIGHT - BOTTOM, TOP)


def _steps(low: float, high: float, log: bool) -> Sequence[float]:
    """Round tick values between low and high."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        inside = [m * 10.0**e for e in decades for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        return inside[:: 1 + len(inside) // 7]
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "middle", css: str = "tick") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, css, text)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, css)


def _frame(found: Front, y: _Scale) -> Markup:
    parts = [_text(LEFT, TOP - 9, f"{found.y.name}{' (log scale)' if found.log_y else ''}", "start", "axis")]
    for value in _steps(y.low, y.high, y.log):
        at = y(value)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at, "grid"), _text(LEFT - 8, at + 4, found.y.show(value), "end")]
    return Markup("").join(parts)


def _x_axis(found: Front, x: _Scale) -> Markup:
    xs = _x_values(found)
    ticks = xs if len(xs) <= 9 else _steps(xs[0], xs[-1], False)
    parts = [_text(x(v), HEIGHT - BOTTOM + 18, found.x.show(v)) for v in ticks]
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "base"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, found.x.name, "middle", "axis"))
    return Markup("").join(parts)


def _limit(found: Front, y: _Scale) -> Markup:
    if found.y.limit is None or not y.low <= found.y.limit <= y.high:
        return Markup()
    at = y(found.y.limit)
    text = f"limit {found.y.show(found.y.limit)}"
    return _line(LEFT, at, WIDTH - RIGHT, at, "limit") + _text(WIDTH - RIGHT, at - 6, text, "end", "limit-name")


def _dot(found: Front, point: Point, x: _Scale, y: _Scale, listed: Container[int]) -> Markup:
    over = " (above the chart)" if point.y > y.high else ""
    title = (
        f"{point.candidate.label}: {found.x.name} {found.x.show(point.x)}, {found.y.name} {found.y.show(point.y)}{over}"
    )
    fixed = point.kind in ("chosen", "baseline", "nearest") or found.x.name != "GPUs"
    aside = 0.0 if fixed else SPREAD * (int(point.candidate.id[:4], 16) / 0x7FFF - 1)
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="dot {}"><title>{}</title></circle>').format(
        x(point.x) + aside, y(point.y), RADIUS[point.kind], point.kind, title
    )
    return dot if point.trial not in listed else Markup('<a href="#trial-{}">{}</a>').format(point.trial, dot)


def _name(point: Point, x: _Scale, y: _Scale) -> Markup:
    at, right = x(point.x), x(point.x) < WIDTH - 110
    return _text(
        at + (13 if right else -13),
        y(point.y) + 4,
        MEANINGS[point.kind],
        "start" if right else "end",
        f"name {point.kind}",
    )
