"""What a store's sessions say over time: every metric's series, its change points and the commits between."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fwopt.regress.changepoints import change_points
from fwopt.regress.kinship import key_digest
from fwopt.regress.store import Stored, series_of
from fwopt.spec.comparison import Change, Series


def histories(stored: Sequence[Stored]) -> list[Series]:
    """One series per version of the suite, key, bench and metric, oldest first."""
    groups: dict[tuple[str, str, str], list[Stored]] = {}
    for item in stored:
        version = item.result.suite, item.result.suite_digest, key_digest(item.result)
        groups.setdefault(version, []).append(item)
    return [
        _series(items, bench.name, metric.name)
        for items in groups.values()
        for bench in items[-1].result.benches
        for metric in bench.metrics
    ]


def _series(items: list[Stored], bench: str, metric: str) -> Series:
    results = [item.result for item in items]
    pairs = [(i, v) for i, v in enumerate(series_of(results, bench, metric)) if v is not None]
    kept = [items[i] for i, _ in pairs]
    values = [value for _, value in pairs]
    last = next(b for b in results[-1].benches if b.name == bench)
    shown = next(m for m in last.metrics if m.name == metric)
    least = math.log1p(results[-1].rules.exact_effect if last.exact else results[-1].rules.floor)
    names = [item.result.commit or item.path.stem for item in kept]
    sign = 1 if shown.better == "lower" else -1
    changes = tuple(
        Change(
            after=names[c.first - 1],
            up_to=names[c.last],
            commits=tuple(names[c.first : c.last + 1]),
            effect=math.expm1(sign * c.change),
            p=c.p,
        )
        for c in (change_points(values, least=least) if len(values) > 1 else ())
    )
    return Series(
        suite=results[-1].suite,
        key=key_digest(results[-1]),
        bench=bench,
        metric=metric,
        unit=shown.unit,
        better=shown.better,
        commits=tuple(names),
        made_at=tuple(item.result.made_at for item in kept),
        values=tuple(values),
        promoted=tuple(item.promoted for item in kept),
        changes=changes,
    )
