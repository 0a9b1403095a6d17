"""What every parser returns, and how single layers become groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fwopt.spec.model import Attention, LayerGroup, Mlp
from fwopt.targets.config import Config


@dataclass(frozen=True, slots=True)
class Shape:
    """The part of a `ModelSpec` that depends on the architecture."""

    hidden_size: int
    vocab_size: int
    layers: tuple[LayerGroup, ...]
    max_context_tokens: int
    tied_embeddings: bool


def shape(config: Config, layers: Iterable[tuple[Attention, Mlp]], *, tied: bool = False) -> Shape:
    """Common fields of nearly every config; `tied` is the family's default for `tie_word_embeddings`."""
    return Shape(
        hidden_size=config.integer("hidden_size"),
        vocab_size=config.integer("vocab_size"),
        layers=grouped(layers),
        max_context_tokens=config.integer("max_position_embeddings"),
        tied_embeddings=config.flag("tie_word_embeddings", tied),
    )


def grouped(layers: Iterable[tuple[Attention, Mlp]]) -> tuple[LayerGroup, ...]:
    """Equal layers counted together, in order of first appearance."""
    counts = Counter(layers)
    return tuple(LayerGroup(count=n, attention=a, mlp=m) for (a, m), n in counts.items())
