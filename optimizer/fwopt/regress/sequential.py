"""When to look, and how much error each look may spend.

Looks are fixed before the first sample: after `min_blocks`, then 1.6 times as many, up to `max_blocks`. Each of K looks
spends alpha / K, so the chance of a false verdict over all looks is at most alpha whatever the correlation between them
(union bound); a budget that ends between two looks brings the next one forward, and no look is added. Inside a look the
metrics of the suite share its alpha by Holm's procedure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from fwopt.spec.bench import Rules

GROWTH = 1.6
K = TypeVar("K")


def looks(rules: Rules) -> tuple[int, ...]:
    """Blocks at each look, ascending."""
    found = [rules.min_blocks]
    while found[-1] < rules.max_blocks:
        found.append(min(rules.max_blocks, math.ceil(found[-1] * GROWTH)))
    return tuple(found)


def planned(rules: Rules, blocks: int) -> tuple[int, ...]:
    """Blocks at each look that `blocks` allow; the last is brought forward where they end between two looks."""
    every = looks(rules)
    due = [n for n in every if n <= blocks]
    if len(due) < len(every) and blocks >= rules.min_blocks and (not due or blocks > due[-1]):
        due.append(blocks)
    return tuple(due)


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """Adjusted p-values: reject those at or below alpha, and the family's error is at most alpha."""
    adjusted: dict[K, float] = {}
    least = 0.0
    for rank, key in enumerate(sorted(p, key=lambda k: p[k])):
        least = max(least, min(1.0, (len(p) - rank) * p[key]))
        adjusted[key] = least
    return adjusted
