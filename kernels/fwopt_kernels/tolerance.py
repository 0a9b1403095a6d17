"""Float64 values and how far each may be off, carried through the steps of a layer that rounds between them.

A number that its error could push over to a neighbour of a narrow format may be off by the step between them. So
tolerances are tight without the reference's arithmetic being a kernel's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Values, and how far each may be off."""


def moved(rounding: Callable[[Tensor], Tensor], x: Pair) -> Pair:
    """Rounded, and the steps between all that the rounded number may be."""
    values, off = x
    middle = rounding(values)
    return middle, torch.maximum((rounding(values + off) - middle).abs(), (rounding(values - off) - middle).abs())


def to_bf16(x: Pair) -> Pair:
    return moved(lambda values: values.float().to(torch.bfloat16).double(), x)


def product(x: Pair, weights: Tensor, bias: Tensor | float, unit: float) -> Pair:
    """Errors of many products add up like independent ones; four times that is never seen. `unit`: of the sum."""
    values, off = x
    return values @ weights.T + bias, 4 * ((off**2 + (unit * values) ** 2) @ (weights**2).T).sqrt()
