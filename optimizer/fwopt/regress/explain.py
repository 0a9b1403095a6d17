"""What moved: the parts of the time that runs state, differenced.

A change of `operator:prefill` is split where runs also say how many prompt tokens were computed: what follows from more
or fewer of them, at the base's time per token, is the prefix cache's doing; the rest is the operators'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fwopt.spec.bench_result import Run
from fwopt.spec.comparison import Part

Kind = Literal["operator", "cpu gap", "queueing", "cache", "other"]
KINDS: dict[str, Kind] = {"operator": "operator", "cpu gap": "cpu gap", "queueing": "queueing", "cache": "cache"}
"""First word of a part's name, before the colon -> what it is; all else is `other`."""
PREFILL, PREFILL_TOKENS, CACHE = "operator:prefill", "tokens:prefill", "cache:prompt tokens computed"
LEAST_SHARE = 0.01
"""Smaller parts of the change are not named."""


def mean_parts(runs: Sequence[Run]) -> dict[str, float]:
    """Over the runs that count and state any."""
    stating = [run.parts for run in runs if run.problem is None and run.parts]
    names = sorted({name for parts in stating for name in parts})
    return {name: sum(parts.get(name, 0.0) for parts in stating) / len(stating) for name in names}


def explain(base: Sequence[Run], head: Sequence[Run]) -> tuple[Part, ...]:
    """Largest change first; empty where either arm states no parts, or nothing changed."""
    before, after = mean_parts(base), mean_parts(head)
    if not before or not after:
        return ()
    moved = _split_cache(before, after)
    size = sum(abs(b - a) for a, b in moved.values())
    if size == 0:
        return ()
    net = sum(b - a for a, b in moved.values())
    whole = net if abs(net) > 0.2 * size else size  # parts that cancel: shares of all movement
    parts = [
        Part(part=name, kind=KINDS.get(name.partition(":")[0], "other"), base_s=a, head_s=b, share=(b - a) / whole)
        for name, (a, b) in moved.items()
        if abs(b - a) >= LEAST_SHARE * size
    ]
    return tuple(sorted(parts, key=lambda p: -abs(p.head_s - p.base_s)))


def _split_cache(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    names = [n for n in dict.fromkeys([*before, *after]) if not n.startswith("tokens:")]
    moved = {name: (before.get(name, 0.0), after.get(name, 0.0)) for name in names}
    had, has = before.get(PREFILL_TOKENS, 0.0), after.get(PREFILL_TOKENS, 0.0)
    if PREFILL in moved and had > 0 and has > 0 and had != has:
        start, end = moved[PREFILL]
        same_rate = start * has / had
        moved[CACHE] = (start, same_rate)
        moved[PREFILL] = (same_rate, end)
    return moved
