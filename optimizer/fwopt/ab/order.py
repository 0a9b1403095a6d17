"""Who is asked what when: drawn once from the seed, so that time and neighbours favour neither server."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fwopt.evals.items import EvalItem, EvalSet
from fwopt.spec.ab import Arm, Label

Order = tuple[Arm, Arm]
_ORDERS: tuple[Order, Order] = (("a", "b"), ("b", "a"))


@dataclass(frozen=True, slots=True)
class Round:
    """A block of requests on each server, then some items."""

    order: Order
    items: tuple[tuple[str, EvalItem, Order], ...]
    """(set, item, who is asked first)."""


def rounds(count: int, sets: Sequence[EvalSet], seed: int) -> list[Round]:
    """Each order as often as the other, to within one; items of all sets mixed over all rounds."""
    draw = random.Random(f"order {seed}")
    items = [(found.name, item) for found in sets for item in found.items]
    draw.shuffle(items)
    firsts, asked = _balanced(count, draw), _balanced(len(items), draw)
    ordered = [(name, item, order) for (name, item), order in zip(items, asked, strict=True)]
    return [Round(first, tuple(ordered[i::count])) for i, first in enumerate(firsts)]


def _balanced(count: int, draw: random.Random) -> list[Order]:
    orders = [_ORDERS[i % 2] for i in range(count)]
    draw.shuffle(orders)
    return orders


def labels(seed: int) -> dict[Arm, Label]:
    """Names that tell a reader of the raw files nothing."""
    return {"a": "X", "b": "Y"} if random.Random(f"labels {seed}").random() < 0.5 else {"a": "Y", "b": "X"}
