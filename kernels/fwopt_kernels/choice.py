"""Which variant runs at a shape: the one that was fastest at the nearest shape that was timed, where it suits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fwopt_kernels.contract import FALLBACK, Variant
from fwopt_kernels.registry import OPERATORS, load


@dataclass(frozen=True)
class Choice:
    """The fastest variant of an operator at one shape."""

    operator: str
    format: str
    shape: Mapping[str, int]
    variant: Variant


class Choices:
    """What was tuned; for the rest `default`: None is each operator's own."""

    def __init__(self, choices: Iterable[Choice] = (), *, default: Variant | None = None) -> None:
        self._default = default
        self._known: dict[tuple[str, str], list[Choice]] = {}
        for choice in choices:
            self._known.setdefault((choice.operator, choice.format), []).append(choice)
        self._found: dict[tuple[str, str, tuple[int, ...]], Variant | None] = {}

    def best(self, operator: str, format: str, **shape: int) -> Variant | None:
        """By the distance of sizes in factors of two. The default where that variant's space says that it does not
        suit the shape. ValueError for other dimensions than those tuned."""
        key = (operator, format, tuple(shape.values()))
        if key not in self._found:
            known = self._known.get((operator, format), [])
            nearest = min(known, key=lambda c: _away(c, shape)).variant if known else self._default
            self._found[key] = nearest if _suits(operator, format, nearest, shape) else self._default
        return self._found[key]


def _suits(operator: str, format: str, chosen: Variant | None, shape: Mapping[str, int]) -> bool:
    if chosen is None or chosen == FALLBACK:
        return True
    return load(OPERATORS[operator]).space(format).suits(chosen, shape)


def _away(choice: Choice, shape: Mapping[str, int]) -> float:
    if choice.shape.keys() != shape.keys():
        raise ValueError(f"{choice.operator}: a shape consists of {', '.join(choice.shape)}, got {', '.join(shape)}")
    return sum(abs(math.log2(max(size, 1) / max(shape[name], 1))) for name, size in choice.shape.items())
