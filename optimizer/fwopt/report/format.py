"""Numbers as people read them: the only place where seconds become milliseconds and shares become percent."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fwopt.errors import plain as plain
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.objective import GoalMetric, LatencyMetric, Slo, format_statistic
from fwopt.spec.outcome import Distribution
from fwopt.spec.provenance import CODES, ProvenanceShares

INFINITE = "inf (rejected)"
"""A latency quantile that falls among rejected requests: they never answer."""

NONE = "-"
"""A value that does not exist here, for example a cost without a price."""

_GIB = 1024.0**3


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits, never in scientific notation: 1830.4 -> `1,830`, 0.0412 -> `0.0412`."""
    if not math.isfinite(value):
        return "inf" if value > 0 else str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def seconds(value: float | None) -> str:
    """`1.83 s`, `41.2 ms`, `850 µs`; None is an infinite latency."""
    if value is None:
        return INFINITE
    shown = abs(float(f"{value:.2e}"))
    if shown == 0 or shown >= 1:
        return f"{significant(value)} s"
    return f"{significant(value * 1e3)} ms" if shown >= 1e-3 else f"{significant(value * 1e6)} µs"


def spread(found: Distribution, answered: int) -> list[str]:
    """Mean, p50, p90, p95, p99 and maximum; `-` where requests were answered and none has such a latency."""
    values = (found.mean_s, found.p50_s, found.p90_s, found.p95_s, found.p99_s, found.max_s)
    return [NONE if found.mean_s is None and answered else seconds(value) for value in values]


def usd(value: float | None) -> str:
    """`$0.142`, `$3.59`, `$2,621`."""
    if value is None:
        return NONE
    sign, size = ("-" if value < 0 else ""), abs(value)
    if size == 0 or round(size) >= 100:
        return f"{sign}${size:,.0f}"
    return f"{sign}${size:.2f}" if size >= 0.9995 else f"{sign}${significant(size)}"


def seconds_listed(values: Iterable[float | None]) -> str:
    """`3.24 / 7.20 / 9.10 s`: several latencies in the unit that suits the largest."""
    items = list(values)
    finite = [v for v in items if v is not None]
    if not finite:
        return " / ".join("inf" for _ in items)
    scale, unit = (1.0, "s") if float(f"{max(finite):.2e}") >= 1 else (1e3, "ms")
    return " / ".join("inf" if v is None else significant(v * scale) for v in items) + f" {unit}"


def percent(share: float | None, decimals: int | None = None) -> str:
    """`62%`, `3.4%`, `<0.1%`; 100% and 0% are said only when exact. `decimals` None: as many as matter."""
    if share is None:
        return NONE
    value, sign = abs(share) * 100, "-" if share < 0 else ""
    if 0 < value < 0.1:
        return f"{sign}<0.1%"
    if 99.95 <= value < 100:
        return f"{sign}>99.9%"
    places = decimals if decimals is not None else 0 if 9.95 <= value < 99.5 or value > 100 else 1
    text = f"{value:.{places}f}"
    return f"{sign}{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def change(new: float | None, old: float | None, less: str = "less", more: str = "more") -> str | None:
    """`38% less`: how `new` differs from `old`; None when it cannot be said."""
    if new is None or not old or old < 0:
        return None
    difference = new / old - 1
    if abs(difference) < 5e-4:
        return "the same"
    return f"{percent(abs(difference))} {less if difference < 0 else more}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def rate(value: float) -> str:
    return f"{significant(value)}/s"


def goal_value(metric: GoalMetric, value: float) -> str:
    """A goal's value in its own unit."""
    if metric in ("kl", "top1"):
        return significant(value) if metric == "kl" else percent(value, 1)
    return {"cost": usd, "gpus": count, "throughput": rate, "goodput": rate}.get(metric, seconds)(value)


def factor(value: float) -> str:
    """A multiple of the traffic: `1.31x`."""
    if float(value).is_integer():
        return f"{value:,.0f}x"
    return f"{value:.2f}x" if 0.1 <= value < 10 else f"{significant(value)}x"


def quantity(value: float | None, unit: str | None) -> str:
    """A need or a have of a rejection, in the unit it was stored in."""
    if value is None:
        return NONE
    if unit in ("bytes", "B"):
        return f"{significant(value / _GIB)} GiB"
    if unit in ("s", "seconds"):
        return seconds(value)
    number = count(value) if float(value).is_integer() else significant(value)
    return f"{number} {plain(unit)}" if unit else number


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def gpus(number: int, hardware: HardwareSpec) -> str:
    return f"{number} x {plain(hardware.device.full_name)}"


def metric_name(metric: LatencyMetric | GoalMetric) -> str:
    return "queue" if metric == "queue" else metric.upper()


def slo_name(slo: Slo) -> str:
    """`TTFT p99`: the SLO without its limit."""
    return f"{metric_name(slo.metric)} {format_statistic(slo.statistic)}"


def provenance(shares: ProvenanceShares) -> str:
    """`62% interpolated, 30% measured, 8% bound`: largest share first, absent kinds left out."""
    found = [(getattr(shares, code), code) for code in CODES]
    shown = sorted(((s, c) for s, c in found if s > 0), key=lambda pair: -pair[0])
    return ", ".join(f"{percent(min(s, 1.0))} {c}" for s, c in shown) or "not stated"


def listing(words: Iterable[str], last: str = "and") -> str:
    """`a, b and c`."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""
