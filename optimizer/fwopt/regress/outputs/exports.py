"""Head's figures in the formats of services that draw them."""

from __future__ import annotations

import json

from fwopt.regress.outputs import words
from fwopt.spec.comparison import Comparison


def github_action_benchmark(c: Comparison) -> str:
    """For `tool: customSmallerIsBetter` of github-action-benchmark; a metric where more is better is given inverted
    (seconds a unit), for the format knows one direction a file."""
    rows = []
    for m in c.metrics:
        if m.head is None:
            continue
        higher = m.better == "higher"
        row = {
            "name": f"{c.suite}/{m.bench}/{m.metric}",
            "unit": f"1/({m.unit})" if higher else m.unit,
            "value": 1 / m.head if higher and m.head else m.head,
            "extra": f"{m.verdict}: {words.change(m)}",
        }
        if m.low is not None and m.high is not None:
            row["range"] = f"{(m.high - m.low) / 2 * 100:.2f}%"
        rows.append(row)
    return json.dumps(rows, indent=1) + "\n"


def bencher_metric_format(c: Comparison) -> str:
    """Bencher's BMF: benchmark -> measure -> value, with the interval of the change laid around base as its limits."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for m in c.metrics:
        if m.head is None:
            continue
        entry = {"value": m.head}
        if m.low is not None and m.high is not None and m.base is not None:
            ends = sorted(m.base * (1 + x) if m.better == "lower" else m.base / (1 + x) for x in (m.low, m.high))
            entry |= {"lower_value": min(ends[0], m.head), "upper_value": max(ends[1], m.head)}
        found.setdefault(f"{c.suite}/{m.bench}", {})[m.metric.replace(":", "-")] = entry
    return json.dumps(found, indent=1) + "\n"
