"""How figures and verdicts are written, alike in every output."""

from __future__ import annotations

from fwopt.report import format as f
from fwopt.spec.comparison import Comparison, MetricVerdict, Part

MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
WIDTH = 25


def value(number: float | None, unit: str) -> str:
    if number is None:
        return f.NONE
    return f.seconds(number) if unit == "s" else f"{f.significant(number)} {unit}"


def signed(share: float | None) -> str:
    return f.NONE if share is None else f"{share * 100:+.1f}%"


def change(m: MetricVerdict) -> str:
    """`+4.8% (+3.1% to +6.5%)`; above zero is worse."""
    if m.low is None or m.high is None:
        return signed(m.effect)
    return f"{signed(m.effect)} ({signed(m.low)} to {signed(m.high)})"


def least(m: MetricVerdict) -> str:
    return f.NONE if m.min_effect is None else f"{m.min_effect * 100:.1f}% ({m.min_effect_from})"


def headline(c: Comparison) -> str:
    counts = {v: sum(m.verdict == v for m in c.metrics) for v in MARKS}
    said = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    return f"{c.verdict}: {c.suite}, {c.head} against {c.base} ({c.design}; {said or 'no metrics'})"


def part(p: Part) -> str:
    """`operator:decode +1.2 ms (83% of the change)`."""
    moved = p.head_s - p.base_s
    sign = "+" if moved >= 0 else "-"
    return f"{p.part} {sign}{f.seconds(abs(moved))} ({p.share * 100:.0f}% of the change)"


def chart(m: MetricVerdict) -> str:
    """The interval on a line from -3 to +3 minimum effects: `|` at one minimum effect, `:` at none."""
    if m.effect is None or not m.min_effect:
        return ""
    end = max(3 * m.min_effect, *(abs(x) for x in (m.effect, m.low, m.high) if x is not None))

    def at(x: float) -> int:
        return round((WIDTH - 1) * (x + end) / (2 * end))

    line = [" "] * WIDTH
    if m.low is not None and m.high is not None:
        for i in range(at(m.low), at(m.high) + 1):
            line[i] = "-"
    for mark, x in ((":", 0.0), ("|", m.min_effect), ("o", m.effect)):
        line[at(x)] = mark
    return "".join(line)
