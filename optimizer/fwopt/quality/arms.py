"""Ways to compute a model: in which numbers, with which kernels, in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fwopt.quality.groups import SIBLINGS, is_rounded
from fwopt.quality.model import Attention
from fwopt.quality.rounding import round_activations, round_kv, round_weight, scales
from fwopt.quality.schemes import Cache, Scheme

if TYPE_CHECKING:
    from fwopt.quality.stored import StoredCheckpoint

BATCH_TOKENS = 2048
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
    stored: StoredCheckpoint | None = None
    """A model of its own, whose matrices were rounded before."""
    starts: int = 0
    """Layer before which its numbers are the reference's."""


def unfit(scheme: Scheme, index: int, layer: nn.Module) -> str | None:
    """Why a layer cannot be stored so; None where it can."""
    for name, weight in matrices(layer):
        width, part = weight.shape[-1], scheme.at(index, name)
        for divisor in part.divisors if part is not None else ():
            if width % divisor:
                return f"{name} is {width} wide, no multiple of {divisor}"
    return None


def matrices(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """What schemes round: every linear layer but routers and gates of experts, and the experts' stacked matrices, seen
    as (…, rows out, columns in)."""
    found = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and is_rounded(name):
            found.append((name, module.weight))
        turned = getattr(module, "is_transposed", False)
        for part, value in module.named_parameters(recurse=False):
            if value.ndim == 3 and part.endswith("_proj"):
                found.append((f"{name}.{part}", value.transpose(1, 2) if turned else value))
    return found


@dataclass(frozen=True, slots=True)
class Standin:
    """What takes the place of a matrix."""

    weight: Tensor
    activations: dict[str, Any] | None
    """How what it is multiplied with is rounded."""


class Rounded(TorchFunctionMode):
    """Within it, products with the layer's matrices are those of one arm. The layer itself is left as it is."""

    def __init__(self, standins: dict[int, Standin]) -> None:
        """`standins`: by address of the storage they take the place of."""
        super().__init__()
        self._standins = standins
        self._last: tuple[Tensor, dict[str, Any], Tensor] | None = None
        """What came in, how it was rounded, and to what: queries, keys and values read the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _PRODUCTS and len(args) >= 2 and isinstance(args[1], Tensor):
            standin = self._standins.get(args[1].untyped_storage().data_ptr())
            if standin is not None:
                return self._product(func, args[0], args[1], standin, *args[2:])
        return func(*args, **(kwargs or {}))

    def _product(self, func: Any, x: Tensor, replaced: Tensor, standin: Standin, bias: Tensor | None = None) -> Tensor:
        dtype, weight = x.dtype, _same_part(standin.weight, replaced)
        x = self._activated(x, standin.activations).to(weight.dtype)
        out: Tensor = F.linear(x, weight) if func.__name__ == "linear" else torch.matmul(x, weight)
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.to(dtype)

    def _activated(self, x: Tensor, fields: dict[str, Any] | None) -> Tensor:
        if fields is None:
            return x
        if self._last is None or self._last[0] is not x or self._last[1] != fields:
            self._last = x, fields, round_activations(x, fields)
        return self._last[2]


def _same_part(whole: Tensor, view: Tensor) -> Tensor:
    """Of `whole`, what `view` is of the tensor that `whole` replaces: an expert of a stack."""
    return whole.as_strided(view.shape, view.stride(), view.storage_offset())


@dataclass(frozen=True, slots=True)
class RoundedKv:
    """In a cache's place: keys and values as the cache would give them back."""

    kept: Cache

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return round_kv(keys, self.kept), round_kv(values, self.kept)


@contextmanager
def computing(arm: Arm, index: int, layer: nn.Module, stored: torch.dtype) -> Iterator[RoundedKv | None]:
    """The layer computes as `arm` says; yields what stands in for its cache. `stored`: dtype of the checkpoint."""
    kept = arm.scheme.cache if arm.scheme is not None else None
    cache = RoundedKv(kept) if kept is not None else None
    replaced = list(_replacements(arm, index, layer, stored))
    standins = dict(replaced)
    assert len(standins) == len(replaced), "matrices that share storage cannot be told apart"
    if not standins:
        yield cache
        return
    with Rounded(standins):
        yield cache


def _replacements(arm: Arm, index: int, layer: nn.Module, stored: torch.dtype) -> Iterator[tuple[int, Standin]]:
    if arm.stored is not None:
        values = arm.stored.exact(index) if arm.stored.rounds_activations else {}
        for name, weight in matrices(layer):
            if name in values:
                activations = arm.stored.activations(index, name)
                yield (
                    weight.untyped_storage().data_ptr(),
                    Standin(_laid_out(values[name], weight, arm, activations), activations),
                )
        return
    if arm.scheme is None and not arm.wide and arm.damage is None:
        return
    rounded = rounded_matrices(arm.scheme, index, layer, stored) if arm.scheme is not None else {}
    for name, weight in matrices(layer):
        value, activations = rounded.get(name, (None, None))
        if value is None and not arm.wide and arm.damage is None:
            continue
        value = weight.float() if value is None else value
        if arm.damage is not None:
            value = arm.damage(index, name, value)
        yield weight.untyped_storage().data_ptr(), Standin(_laid_out(value, weight, arm, activations), activations)


def rounded_matrices(
    scheme: Scheme, index: int, layer: nn.Module, stored: torch.dtype
) -> dict[str, tuple[Tensor, dict[str, Any] | None]]:
    """Of a layer's matrices that the scheme rounds: (levels times scales in float32, how activations are rounded)."""
    found = [(name, weight, scheme.at(index, name)) for name, weight in matrices(layer)]
    shared = _shared_scales(found, stored)
    rounded = {}
    for name, weight, part in found:
        if part is not None and part.weights is not None:
            each = [round_weight(w, part.weights, shared.get(name)) for w in _flat(as_stored(weight, stored))]
            rounded[name] = each[0] if weight.ndim == 2 else torch.stack(each), part.activations
    return rounded


def as_stored(weight: Tensor, stored: torch.dtype) -> Tensor:
    """In the checkpoint's dtype, in which quantizers round, where that is narrower."""
    return weight.to(stored) if stored.itemsize < weight.dtype.itemsize else weight


def _laid_out(value: Tensor, weight: Tensor, arm: Arm, activations: dict[str, Any] | None) -> Tensor:
    """As the weight it takes the place of lies in memory."""
    dtype = _dtype(arm, weight, activations)
    return torch.empty_strided(weight.shape, weight.stride(), dtype=dtype).copy_(value)


def _dtype(arm: Arm, weight: Tensor, activations: dict[str, Any] | None) -> torch.dtype:
    """Rounded activations meet levels that are exact in float32 alone; weights alone are read back as 16 bits."""
    if arm.wide:
        return torch.float32 if weight.dtype == torch.bfloat16 else torch.float64
    return torch.float32 if activations is not None else weight.dtype


def _flat(weight: Tensor) -> list[Tensor]:
    return [weight] if weight.ndim == 2 else list(weight)


def _shared_scales(found: list[tuple[str, Tensor, Scheme | None]], stored: torch.dtype) -> dict[str, Tensor]:
    """Of matrices that an engine fuses, where each has one scale."""
    shared: dict[str, Tensor] = {}
    one_scale = {
        name: (as_stored(weight, stored), part.weights)
        for name, weight, part in found
        if part is not None and part.weights is not None and part.weights["strategy"] == "tensor" and weight.ndim == 2
    }
    for siblings in SIBLINGS:
        for first in [name for name in one_scale if name.endswith(siblings[0])]:
            names = [first.removesuffix(siblings[0]) + part for part in siblings]
            if all(name in one_scale for name in names):
                scale = torch.stack([scales(*one_scale[name]) for name in names]).amax(dim=0)
                shared |= dict.fromkeys(names, scale)
    return shared
