"""What every parser returns, and how single layers become groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fwopt.spec.model import Attention, LayerGroup, Mlp
from fwopt.targets.config import Config

_STRETCHED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


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
        max_context_tokens=_context(config),
        tied_embeddings=config.flag("tie_word_embeddings", tied),
    )


def _context(config: Config) -> int:
    """Longest sequence that vLLM serves by default: it stretches the stated length by `factor` where positions are
    scaled in a way that does not state the stretched length already (`_get_and_verify_max_len`, 0.32)."""
    stated = config.integer("max_position_embeddings")
    field = next((name for name in ("rope_parameters", "rope_scaling") if config.has(name)), None)
    if field is None:
        return stated
    rope = config.section(field)
    kind = rope.text("rope_type") or rope.text("type") or "default"
    factor = rope.fields().get("factor") if kind not in _STRETCHED_ALREADY else None
    if factor is None:
        return stated
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise rope.error("factor", "must be a positive number")
    return int(stated * factor)


def grouped(layers: Iterable[tuple[Attention, Mlp]]) -> tuple[LayerGroup, ...]:
    """Equal layers counted together, in order of first appearance."""
    counts = Counter(layers)
    return tuple(LayerGroup(count=n, attention=a, mlp=m) for (a, m), n in counts.items())
