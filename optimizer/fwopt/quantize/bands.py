"""Groups of a mixture: one kind of matrices over some layers, which get one scheme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fwopt.quality.groups import EXPERTS
from fwopt.quality.schemes import Scheme
from fwopt.quality.shards import Shards
from fwopt.quantize.layout import Place, places
from fwopt.spec.base import content_hash


@dataclass(frozen=True, slots=True)
class Product:
    """(tokens, k) x (k, n), as an engine fuses it."""

    n: int
    k: int


@dataclass(frozen=True, slots=True)
class Band:
    """`name` is `FIRST-LAST.GROUP`."""

    name: str
    layers: tuple[int, ...]
    group: str
    products: tuple[Product, ...]
    """Of all its layers; of experts, none: their time depends on the routing."""

    def members(self) -> list[str]:
        """Of `Scheme.parts`."""
        return [f"{layer}.{self.group}" for layer in self.layers]


def bands(source: Path, width: int) -> list[Band]:
    """Of a checkpoint, `width` layers each."""
    shards = Shards(source)
    shapes = {name: shards.shape(name) for name in shards.names}
    by_group: dict[tuple[int, str], list[Place]] = {}
    for place in places(shards.names, {name: len(shape) for name, shape in shapes.items()}):
        by_group.setdefault((place.layer, place.group), []).append(place)
    together: dict[tuple[int, str], dict[int, Product | None]] = {}
    for (layer, group), members in by_group.items():
        sides = [shapes[f"{place.module}.weight"] for place in members]
        product = None if group == EXPERTS else Product(sum(n for n, _ in sides), sides[0][1])
        together.setdefault((layer // width, group), {})[layer] = product
    return [
        Band(f"{min(found)}-{max(found)}.{group}", tuple(sorted(found)), group,
             tuple(found[layer] for layer in sorted(found) if found[layer] is not None))  # type: ignore[misc]
        for (_, group), found in sorted(together.items())
    ]  # fmt: skip


def mixture(chosen: Mapping[str, Scheme | None], where: Iterable[Band]) -> Scheme:
    """Band -> scheme, as one scheme; named by its content."""
    parts = {key: part for band in where if (part := chosen[band.name]) is not None for key in band.members()}
    digest = content_hash({key: part.name for key, part in parts.items()})[:8]
    counts: dict[str, int] = {}
    for part in parts.values():
        counts[part.name] = counts.get(part.name, 0) + 1
    says = ", ".join(f"{name} in {count}" for name, count in sorted(counts.items()))
    return Scheme(f"mixed-{digest}", f"a mixture: {says} groups of matrices, the rest in 16 bits", parts=parts)
