"""Adapters of `lora`, random inputs, the float64 reference and the torch fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt_kernels.contract import Expected
from fwopt_kernels.moe_routing import Routing
from fwopt_kernels.tolerance import Pair, product, to_bf16

Choice = Literal["each", "one", "none"]
"""Of adapters: each in turn and then none, in random order; the last one for all rows; none for any."""


@dataclass(frozen=True)
class Adapters:
    """Of one layer, all of one rank, as vLLM's `lora_a_stacked` and `lora_b_stacked` hold them. Smaller ranks are
    filled up with zeros."""

    a: Tensor
    """(adapters, 1, rank, inputs) bfloat16; rows may lie apart."""
    b: Tensor
    """(adapters, 1, outputs, rank) bfloat16; likewise."""
    scales: Tensor
    """(adapters,) float32: alpha over rank; ones where B was multiplied by it, as vLLM does when it loads one."""

    @property
    def count(self) -> int:
        return self.a.shape[0]

    @property
    def rank(self) -> int:
        return self.a.shape[2]


@dataclass(frozen=True)
class LoraCase:
    x: Tensor
    adapters: Adapters
    ids: Tensor
    y: Tensor
    routings: dict[int, Routing] = field(default_factory=dict)
    """By block of rows: sorted once, as for all layers of a step."""

    def results(self) -> dict[str, Tensor]:
        return {"y": self.y.double()}


def with_adapter(tokens: int, adapters: int) -> int:
    """Rows of `random_case` that have one, where each comes in turn."""
    return tokens - tokens // (adapters + 1)


def random_case(shape: Mapping[str, int], seed: int, padding: int, device: str, choice: Choice) -> LoraCase:
    """NaN lies between rows."""
    tokens, count, rank, inputs, outputs = (shape[n] for n in ("tokens", "adapters", "rank", "inputs", "outputs"))
    random = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*size, generator=random, device=device)
        return F.pad(values, (0, padding), value=float("nan")).to(torch.bfloat16)[..., : size[-1]]

    turns = torch.arange(tokens, device=device) % (count + 1)
    ids = torch.where(turns < count, turns, -1)[torch.randperm(tokens, generator=random, device=device)]
    if choice != "each":
        ids = torch.full_like(ids, count - 1 if choice == "one" else -1)
    adapters = Adapters(
        normal(count, 1, rank, inputs, scale=inputs**-0.5),
        normal(count, 1, outputs, rank, scale=rank**-0.5),
        0.5 + torch.rand(count, generator=random, device=device),
    )
    return LoraCase(normal(tokens, inputs), adapters, ids.int(), normal(tokens, outputs))


def expected(case: LoraCase) -> dict[str, Expected]:
    """Tensor cores of Hopper sum bfloat16 products with float32's bits, cut off."""
    unit, total = 2**-16, case.y.double()
    off = torch.zeros_like(total)
    for adapter in range(case.adapters.count):
        (token,) = (case.ids == adapter).nonzero(as_tuple=True)
        x = case.x[token].double()
        rows: Pair = (x, torch.zeros_like(x))
        hidden = to_bf16(product(rows, case.adapters.a[adapter, 0].double(), 0.0, unit))
        values, wrong = product(hidden, case.adapters.b[adapter, 0].double(), 0.0, unit)
        scale = case.adapters.scales[adapter].double()
        total.index_add_(0, token, values * scale)
        off.index_add_(0, token, (wrong + 2**-22 * values.abs()) * scale.abs())
    return {"y": Expected(total, rtol=2**-8 * 1.01, atol=off + 2**-22 * case.y.double().abs())}


def fallback(case: LoraCase) -> None:
    """In float32 between the roundings."""
    for adapter in range(case.adapters.count):
        (token,) = (case.ids == adapter).nonzero(as_tuple=True)
        hidden = (case.x[token].float() @ case.adapters.a[adapter, 0].float().T).to(torch.bfloat16)
        added = hidden.float() @ case.adapters.b[adapter, 0].float().T * case.adapters.scales[adapter]
        case.y[token] = (case.y[token].float() + added).to(torch.bfloat16)
