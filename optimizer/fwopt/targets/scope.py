"""Which weight matrices of a published checkpoint are quantized: lists of modules in its config say so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal

from fwopt.errors import InputError
from fwopt.spec.model import Attention, LayerGroup

Scope = Literal["all", "experts", "part"]
"""`experts`: routed experts alone. `part`: any other choice of matrices, or none."""
Named = Callable[[str], bool]
"""Whether a list names a module."""

_PREFIXES = ("model.layers", "model.language_model.layers", "language_model.model.layers")
"""Where checkpoints keep decoder layers, alone or inside a multimodal model."""
_MLP = (("up_proj",), ("down_proj",))
_SHARED = tuple(tuple(f"{name}.{part}" for name in ("shared_experts", "shared_expert")) for (part,) in _MLP)
_EXPERTS = (
    ("mlp.experts.0.up_proj", "block_sparse_moe.experts.0.w3"),
    ("mlp.experts.0.down_proj", "block_sparse_moe.experts.0.w2"),
)
"""Matrices, each by all its names in use. Gates, keys and values share a product, and so a scheme, with `up_proj` and
queries."""


def scope(layers: tuple[LayerGroup, ...], left_out: Named, targeted: Named = lambda _: True) -> Scope:
    """Of the matrices that any scheme here quantizes: not embeddings, LM head, routers, norms, convolutions and the
    gates of linear attention."""

    def quantized(names: Iterable[str]) -> bool:
        full = [f"{prefix}.{name}" for prefix in _PREFIXES for name in names]
        return any(map(targeted, full)) and not any(map(left_out, full))

    inside = {quantized(names) for names in _experts(layers)}
    outside = {quantized(names) for names in _outside(layers)}
    if inside | outside == {True}:
        return "all"
    return "experts" if inside == {True} and outside == {False} else "part"


def exactly(entries: Iterable[str], label: str) -> Named:
    """compressed-tensors: an entry is a module's name, or a regular expression from its start after `re:`."""
    names = {entry for entry in entries if not entry.startswith("re:")}
    matching = patterned([entry for entry in entries if entry.startswith("re:")], label)
    return lambda module: module in names or matching(module)


def patterned(entries: Iterable[str], label: str) -> Named:
    """GPTQ: regular expressions from a name's start."""
    patterns = []
    for entry in entries:
        try:
            patterns.append(re.compile(entry.removeprefix("re:")))
        except re.error:
            raise InputError(f"{label}: '{entry}' is not a regular expression") from None
    return lambda module: any(pattern.match(module) for pattern in patterns)


def within(entries: Iterable[str]) -> Named:
    """AWQ: an entry is any part of a name."""
    return lambda module: any(entry in module for entry in entries)


def holding(entries: Iterable[str]) -> Named:
    """fp8 and ModelOpt: an entry is a module, one that holds it, or whole steps of such a path; `*` is any text."""
    plain = {entry for entry in entries if "*" not in entry}
    wild = [entry for entry in entries if "*" in entry]

    def named(module: str) -> bool:
        steps = module.split(".")
        ends = range(1, len(steps) + 1)
        return any(".".join(steps[i:j]) in plain for j in ends for i in range(j)) or any(
            fnmatchcase(module, entry) or fnmatchcase(module, f"{entry}.*") for entry in wild
        )

    return named


def _experts(layers: tuple[LayerGroup, ...]) -> Iterator[tuple[str, ...]]:
    """`LAYER.MODULE` of every routed expert's matrices. Dense layers come first where there are both."""
    for index in range(_dense(layers), sum(group.count for group in layers)):
        yield from (tuple(f"{index}.{name}" for name in names) for names in _EXPERTS)


def _outside(layers: tuple[LayerGroup, ...]) -> Iterator[tuple[str, ...]]:
    """`LAYER.MODULE` of every other matrix. Which layers have which attention is not asked: each has every kind."""
    attention = sorted({part for group in layers for part in _attention(group.attention)})
    shared = any(group.mlp.kind == "moe" and group.mlp.shared_intermediate_size for group in layers)
    for index in range(sum(group.count for group in layers)):
        yield from ((f"{index}.{part}",) for part in attention)
        dense = _MLP if index < _dense(layers) else _SHARED if shared else ()
        yield from (tuple(f"{index}.mlp.{name}" for name in names) for names in dense)


def _dense(layers: tuple[LayerGroup, ...]) -> int:
    return sum(group.count for group in layers if group.mlp.kind == "dense")


def _attention(attention: Attention) -> tuple[str, ...]:
    if attention.kind == "gqa":
        return ("self_attn.q_proj", "self_attn.o_proj")
    if attention.kind == "gdn":
        return ("linear_attn.in_proj_qkv", "linear_attn.out_proj")
    queries = ("q_proj",) if attention.q_lora_rank is None else ("q_a_proj", "q_b_proj")
    return tuple(f"self_attn.{part}" for part in (*queries, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"))
