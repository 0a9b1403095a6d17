"""When to look, and how much error each look may spend.

Looks are fixed before the first sample: after `min_blocks`, then 1.6 times as many, up to `max_blocks`. Each of K looks
spends alpha / K: so likely is it that equal arms are rejected there and at no look before. Looks share most of their
blocks, so most of what a later look would reject falsely was rejected before, and its own level may be higher than
alpha / K (Armitage, McPherson & Rowe 1969; for Student's t by its level: Jennison & Turnbull 2000, section 4.4). A
budget that ends between two looks brings the next one forward: it shares more blocks with those before it than planned,
so its level stands, and no look is added. Inside a look the metrics of the suite share its alpha by Holm's procedure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fwopt.spec.bench import Rules

GROWTH = 1.6
LOST_SHARE = 0.2
"""Part of alpha that is kept for requests without an answer, in whatever benches lose any; all else shares the rest."""
FEWER = 3
"""Student's t of few blocks depends less on earlier looks than sums do: as if there were so many blocks fewer. In
400,000 drawn sequences with first looks after 5 and 6 blocks 0.98 to 1.02 of 5 % and of 0.5 % were then spent; without
it up to 1.08."""
_FARTHEST = 8.0
"""Standard deviations below zero at which a sum is taken to be impossible."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(200)
Floats = NDArray[np.float64]
K = TypeVar("K")


def looks(rules: Rules) -> tuple[int, ...]:
    """Blocks at each look, ascending."""
    found = [rules.min_blocks]
    while found[-1] < rules.max_blocks:
        found.append(min(rules.max_blocks, math.ceil(found[-1] * GROWTH)))
    return tuple(found)


def planned(rules: Rules, blocks: int, *, ended: bool = True) -> tuple[int, ...]:
    """Blocks at each look that `blocks` allow; the last is brought forward where measuring ended between two looks."""
    every = looks(rules)
    due = [n for n in every if n <= blocks]
    if ended and len(due) < len(every) and blocks >= rules.min_blocks and (not due or blocks > due[-1]):
        due.append(blocks)
    return tuple(due)


def levels(rules: Rules, alpha: float, metrics: int = 1) -> tuple[float, ...]:
    """What each look may reject at, one-sided, so that all of them together err with probability alpha.

    Of so many metrics, Holm-adjusted p-values are to be held against it: the level of one metric at alpha / metrics,
    times metrics, for the part that looks share is smaller at smaller levels."""
    return tuple(metrics * level for level in _levels(looks(rules), alpha / metrics))


@lru_cache(maxsize=256)
def _levels(at: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Carries the density of the sum over blocks, where no look has rejected, from one look to the next."""
    from scipy import optimize  # takes longer to import than everything else here

    found: list[float] = []
    sums, density, before = np.zeros(1), np.ones(1), FEWER
    for blocks in at:
        step, root = math.sqrt(blocks - before), math.sqrt(blocks - FEWER)

        def excess(limit: float, sums: Floats = sums, density: Floats = density, step: float = step) -> float:
            return float(density @ special.ndtr((sums - limit) / step)) - alpha / len(at)

        limit = float(optimize.brentq(excess, -_FARTHEST * root, _FARTHEST * root))
        found.append(float(special.ndtr(-limit / root)))
        half = (limit + _FARTHEST * root) / 2
        points = limit + half * (_POINTS - 1)
        between = np.exp(-(((points[:, None] - sums) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
        sums, density, before = points, between @ density * half * _WEIGHTS, blocks
    return tuple(found)


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """Adjusted p-values: reject those at or below alpha, and the family's error is at most alpha."""
    adjusted: dict[K, float] = {}
    least = 0.0
    for rank, key in enumerate(sorted(p, key=lambda k: p[k])):
        least = max(least, min(1.0, (len(p) - rank) * p[key]))
        adjusted[key] = least
    return adjusted
