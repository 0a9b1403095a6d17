"""Schemes that `fwopt quality` can compare, by name; where a deployment can carry one, it has the same name there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fwopt.errors import InputError, UnknownNameError
from fwopt.quality.groups import group_of

Cache = Literal["fp8", "int8"]
Strategy = Literal["tensor", "channel", "group", "block"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """`weights` and `activations` are fields of compressed-tensors' QuantizationArgs; None: left in 16 bits."""

    name: str
    says: str
    """For a reader: what is stored how."""
    weights: dict[str, Any] | None = None
    activations: dict[str, Any] | None = None
    cache: Cache | None = None
    """What keys and values are rounded to."""
    parts: Mapping[str, Scheme] | None = None
    """A mixture, in place of `weights` and `activations`: `LAYER.GROUP` -> its scheme; a group that is absent stays as
    it is."""
    checkpoint: Path | None = None
    """A quantized checkpoint, computed as it is stored, in place of all the above."""

    def at(self, layer: int, matrix: str) -> Scheme | None:
        """The scheme of one matrix."""
        return self if self.parts is None else self.parts.get(f"{layer}.{group_of(matrix)}")

    @property
    def divisors(self) -> tuple[int, ...]:
        """What the width of a rounded matrix must be a multiple of."""
        groups = [(side or {}).get("group_size") for side in (self.weights, self.activations)]
        return tuple(sorted({group for group in groups if group}))


_E4M3: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
_INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
_INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
_BY_TOKEN: dict[str, Any] = {"strategy": "token", "dynamic": True}
_MXFP4: dict[str, Any] = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "strategy": "group",
    "group_size": 32,
    "scale_dtype": "torch.uint8",
}

_CACHED: dict[Cache, str] = {
    "fp8": "keys and values in e4m3 with scale 1",
    "int8": "keys and values in int8, a scale for each token and head",
}
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("bf16", "weights and activations as published"),
        Scheme(
            "fp8", "e4m3, a scale for each matrix; activations e4m3 by token",
            _E4M3 | {"strategy": "tensor"}, _E4M3 | _BY_TOKEN,
        ),
        Scheme(
            "fp8-row", "e4m3, a scale for each row; activations e4m3 by token",
            _E4M3 | {"strategy": "channel"}, _E4M3 | _BY_TOKEN,
        ),
        Scheme(
            "fp8-block", "e4m3 in blocks of 128x128; activations e4m3 in groups of 128",
            _E4M3 | {"strategy": "block", "block_structure": [128, 128]},
            _E4M3 | {"strategy": "group", "group_size": 128, "dynamic": True},
        ),
        Scheme(
            "int8", "int8, a scale for each row; activations int8 by token (w8a8)",
            _INT8 | {"strategy": "channel"}, _INT8 | _BY_TOKEN,
        ),
        Scheme("w8a16", "int8, a scale for each row; activations in 16 bits", _INT8 | {"strategy": "channel"}),
        Scheme("w4a16", "int4 in groups of 128, rounded to nearest", _INT4 | {"group_size": 128}),
        Scheme("w4a16-g64", "int4 in groups of 64, rounded to nearest", _INT4 | {"group_size": 64}),
        Scheme("w4a16-g32", "int4 in groups of 32, rounded to nearest", _INT4 | {"group_size": 32}),
        Scheme("mxfp4", "e2m1 in groups of 32 with a power of two as scale, weights alone", _MXFP4),
        Scheme("kv-fp8", f"{_CACHED['fp8']}; weights as published", cache="fp8"),
        Scheme("kv-int8", f"{_CACHED['int8']}; weights as published", cache="int8"),
    )
}  # fmt: skip


def parse_schemes(text: str | None) -> tuple[Scheme, ...]:
    """`fp8,w4a16+kv-fp8`; None: every scheme there is."""
    if text is None:
        return tuple(scheme for name, scheme in SCHEMES.items() if name != "bf16")
    found: dict[str, Scheme] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        scheme = _parse(name)
        found[scheme.name] = scheme
    found.pop("bf16", None)
    if not found:
        raise InputError(f"--schemes '{text}': must name at least one scheme beside bf16; known: {', '.join(SCHEMES)}")
    return tuple(found.values())


def _parse(name: str) -> Scheme:
    weights, plus, cache = name.partition("+")
    for part in (weights, cache) if plus else (weights,):
        if part not in SCHEMES:
            raise UnknownNameError("scheme", part, SCHEMES)
    scheme = SCHEMES[weights]
    if not plus:
        return scheme
    kept = SCHEMES[cache].cache
    if kept is None or scheme.cache is not None:
        raise InputError(f"--schemes '{name}': only kv-fp8 or kv-int8 can be added to a scheme of weights")
    if weights == "bf16":
        return SCHEMES[cache]
    return Scheme(name, f"{scheme.says}; {_CACHED[kept]}", scheme.weights, scheme.activations, kept)
