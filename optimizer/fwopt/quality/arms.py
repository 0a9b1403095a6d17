"""Ways to compute a model: in which numbers, with which kernels, in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fwopt.quality.model import Attention
from fwopt.quality.rounding import round_activations, round_kv, round_weight, scales
from fwopt.quality.schemes import Scheme

BATCH_TOKENS = 2048
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Matrices that an engine fuses into one: with one scale a matrix, they share it (vLLM takes the greatest)."""
_PRODUCTS = ("linear", "matmul", "__matmul__")

Damage = Callable[[int, str, Tensor], Tensor]
"""(layer, name of the matrix, as rounded) -> what is computed with instead: for tests of the gate."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way."""

    name: str
    scheme: Scheme | None = None
    """None: the reference's own numbers."""
    attention: Attention | None = None
    """None: the usual one."""
    batch_tokens: int = BATCH_TOKENS
    backwards: bool = False
    """Windows in reverse order."""
    padding: int = 0
    """Tokens after the end of each window, which nothing before them sees."""
    wide: bool = False
    """Products of matrices in the next wider dtype, rounded afterwards: another kernel's order of summation."""
    damage: Damage | None = None


def unfit(scheme: Scheme, layer: nn.Module) -> str | None:
    """Why a layer cannot be stored so; None where it can."""
    for name, weight in matrices(layer):
        width = weight.shape[-1]
        for divisor in scheme.divisors:
            if width % divisor:
                return f"{name} is {width} wide, no multiple of {divisor}"
    return None


def matrices(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """What schemes round: every linear layer but routers and gates of experts, and the experts' stacked matrices, seen
    as (…, rows out, columns in)."""
    found = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(("gate", "router")):
            found.append((name, module.weight))
        turned = getattr(module, "is_transposed", False)
        for part, value in module.named_parameters(recurse=False):
            if value.ndim == 3 and part.endswith("_proj"):
                found.append((f"{name}.{part}", value.transpose(1, 2) if turned else value))
    return found


class Rounded(TorchFunctionMode):
    """Within it, products with the layer's matrices are those of one arm. The layer itself is left as it is."""

    def __init__(self, weights: dict[int, Tensor], activations: dict[str, Any] | None) -> None:
        """`weights`: by address of the storage they take the place of."""
        super().__init__()
        self._weights, self._activations = weights, activations
        self._last: tuple[Tensor, Tensor] | None = None
        """What came in and its rounding: queries, keys and values read the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _PRODUCTS and len(args) >= 2 and isinstance(args[1], Tensor):
            whole = self._weights.get(args[1].untyped_storage().data_ptr())
            if whole is not None:
                return self._product(func, args[0], _same_part(whole, args[1]), *args[2:])
        return func(*args, **(kwargs or {}))

    def _product(self, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        dtype = x.dtype
        x = self._activated(x).to(weight.dtype)
        out: Tensor = F.linear(x, weight) if func.__name__ == "linear" else torch.matmul(x, weight)
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.to(dtype)

    def _activated(self, x: Tensor) -> Tensor:
        if self._activations is None:
            return x
        if self._last is None or self._last[0] is not x:
            self._last = x, round_activations(x, self._activations)
        return self._last[1]


def _same_part(whole: Tensor, view: Tensor) -> Tensor:
    """Of `whole`, what `view` is of the tensor that `whole` replaces: an expert of a stack."""
    return whole.as_strided(view.shape, view.stride(), view.storage_offset())


class RoundedKv:
    """In a cache's place: keys and values as the cache would give them back."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return round_kv(keys), round_kv(values)


@contextmanager
def computing(arm: Arm, index: int, layer: nn.Module, stored: torch.dtype) -> Iterator[RoundedKv | None]:
    """The layer computes as `arm` says; yields what stands in for its cache. `stored`: dtype of the checkpoint."""
    cache = RoundedKv() if arm.scheme is not None and arm.scheme.kv_fp8 else None
    replaced = list(_replacements(arm, index, layer, stored))
    weights = dict(replaced)
    assert len(weights) == len(replaced), "matrices that share storage cannot be told apart"
    activations = arm.scheme.activations if arm.scheme is not None else None
    if not weights:
        yield cache
        return
    with Rounded(weights, activations):
        yield cache


def _replacements(arm: Arm, index: int, layer: nn.Module, stored: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    fields = arm.scheme.weights if arm.scheme is not None else None
    if fields is None and not arm.wide and arm.damage is None:
        return
    found = matrices(layer)
    shared = _shared_scales(found, fields, stored) if fields is not None and fields["strategy"] == "tensor" else {}
    for name, weight in found:
        rounding = weight.to(stored) if weight.dtype != stored and stored.itemsize < weight.dtype.itemsize else weight
        value = weight.float()
        if fields is not None:
            each = [round_weight(w, fields, shared.get(name)) for w in _flat(rounding)]
            value = each[0] if weight.ndim == 2 else torch.stack(each)
        if arm.damage is not None:
            value = arm.damage(index, name, value)
        as_laid_out = torch.empty_strided(weight.shape, weight.stride(), dtype=_dtype(arm, weight))
        yield weight.untyped_storage().data_ptr(), as_laid_out.copy_(value)


def _dtype(arm: Arm, weight: Tensor) -> torch.dtype:
    """Rounded activations meet levels that are exact in float32 alone; weights alone are read back as 16 bits."""
    if arm.wide:
        return torch.float32 if weight.dtype == torch.bfloat16 else torch.float64
    activations = arm.scheme is not None and arm.scheme.activations is not None
    return torch.float32 if activations else weight.dtype


def _flat(weight: Tensor) -> list[Tensor]:
    return [weight] if weight.ndim == 2 else list(weight)


def _shared_scales(found: list[tuple[str, Tensor]], fields: dict[str, Any], stored: torch.dtype) -> dict[str, Tensor]:
    shared: dict[str, Tensor] = {}
    by_name = dict(found)
    for siblings in _SIBLINGS:
        for first in [name for name in by_name if name.endswith(siblings[0])]:
            names = [first.removesuffix(siblings[0]) + part for part in siblings]
            if all(name in by_name and by_name[name].ndim == 2 for name in names):
                scale = torch.stack([scales(by_name[name].to(stored), fields) for name in names]).amax(dim=0)
                shared |= dict.fromkeys(names, scale)
    return shared
