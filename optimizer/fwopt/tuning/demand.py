"""Which shapes of which operators a workload makes an engine compute, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from fwopt.errors import InputError
from fwopt.perf import shapes
from fwopt.sim.counts import StepCounts
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineName
from fwopt.spec.model import GroupedQueryAttention, LayerGroup, ModelSpec
from fwopt.targets.weights import dense_linears
from fwopt.tuning.family import Demand, Family
from fwopt.tuning.operators import load_operator, targets

_ROW_FORMATS = {"fp8": "fp8-row", "int8": "int8-row"}
_LINEARS = {"w4a16": ("w4a16",), "fp8": ("fp8_gemm", "fp8"), "fp8_block": ("fp8_gemm", "fp8"),
            "int8": ("int8_gemm",)}  # fmt: skip
"""Dtype of a linear layer -> names of an operator that computes it, the first that there is. bf16 products are left to
the vendor's library."""
_SCALES = ("tensor", "row", "block")
_NEVER_CALLED = {"lora": "no engine is simulated with adapters, so no step calls it"}
_FORMAT_WORDS = {"fp8": ("tensor", "row"), "fp8_block": ("block",), "int8": ("row",)}


def demands(
    model: ModelSpec, candidate: Candidate, steps: StepCounts, engine: EngineName = "vllm"
) -> tuple[list[Demand], list[str]]:
    """Of every operator that fwopt has kernels for, or that an engine brings; and what of the model has none. The
    reference engine feeds all its layers in bfloat16 and multiplies FP8 with torch."""
    found: dict[Family, list[Demand]] = {}
    notes: list[str] = []
    for group in model.layers:
        for demand in _group(model, group, candidate, steps, notes, plain=engine == "fwopt"):
            found.setdefault(demand.family, []).append(demand)
    family = _family(("sampling",), ("fp32",), {"vocabulary": model.vocab_size}, ("rows",), notes)
    if family is not None:  # once a step, whatever the layers; prompts that end in a step are few beside its decodes
        found[family] = [Demand(family, steps.batch[:, None], steps.decode_steps)]
    return [_together(demand) for demand in found.values()], sorted(set(notes))


def uncalled(names: Iterable[str], found: Iterable[Demand]) -> list[str]:
    """A line for each operator named that there is no demand for."""
    called = {demand.family.operator for demand in found}
    missing = [name for name in dict.fromkeys(names) if name not in called]
    return [f"{name}: {_NEVER_CALLED.get(name, 'no step of this deployment calls it')}" for name in missing]


def _together(parts: list[Demand]) -> Demand:
    points = np.concatenate([part.points for part in parts])
    calls = np.concatenate([part.calls for part in parts])
    unique, at = np.unique(points, axis=0, return_inverse=True)
    total = np.zeros(len(unique))
    np.add.at(total, at.reshape(-1), calls)
    return Demand(parts[0].family, unique, total)


def _group(
    model: ModelSpec, group: LayerGroup, candidate: Candidate, steps: StepCounts, notes: list[str], *, plain: bool
) -> Iterator[Demand]:
    tp, attention = candidate.parallelism.tp, group.attention
    layer = shapes.layer(model, group, candidate.quantization, candidate.parallelism)
    rows = steps.tokens[:, None]

    def by_tokens(names: tuple[str, ...], words: tuple[str, ...], each: float, **facts: int) -> Iterator[Demand]:
        family = _family(names, words, facts, ("m", "rows", "tokens"), notes)
        if family is not None:
            yield Demand(family, rows, steps.token_steps * (each * group.count))

    kinds = {product.dtype for product in layer.products} - {"bf16"}
    into = "bf16" if plain else _ROW_FORMATS.get(next(iter(kinds), ""), "bf16")
    yield from by_tokens(("rms_norm",), (into,), 2, columns=model.hidden_size)
    dense = list(dense_linears(group.mlp, model.hidden_size, tp))
    if dense:
        yield from by_tokens(("silu_mul",), (into,), 1, columns=dense[1].k)
    for product in layer.products:
        if product.dtype == "bf16":
            continue
        if plain and product.dtype == "fp8":
            notes.append("fp8 linear layers: the reference engine multiplies them with torch")
            continue
        if product.dtype not in _LINEARS:
            notes.append(f"{product.dtype} linear layers: fwopt has no kernel for them")
            continue
        words = _FORMAT_WORDS.get(product.dtype) or (_groups(candidate),)
        yield from by_tokens(_LINEARS[product.dtype], words, 1, n=product.n, k=product.k)
    if isinstance(attention, GroupedQueryAttention):
        yield from _attention(attention, group, candidate, steps, notes)
    else:
        notes.append(f"{attention.kind} attention: fwopt has no kernel for it")
    if layer.experts is not None:
        e = layer.experts
        if e.ep > 1:
            notes.append("experts spread over GPUs: fwopt's kernel knows whole layers only")
        else:
            facts = {"experts": e.experts, "topk": e.topk, "top_k": e.topk, "hidden": e.hidden,
                     "inter": e.inter // e.tp, "intermediate": e.inter // e.tp}  # fmt: skip
            blocks = e.dtype == "fp8_block" or (plain and e.dtype == "fp8")  # the reference engine: of equal scales
            words = ("block", "fp8") if blocks else (e.dtype, *_FORMAT_WORDS.get(e.dtype, ()))
            yield from by_tokens(("fused_moe",), words, 1, **facts)
            family = _family(("vllm_fused_moe",), words, facts, ("tokens",), [])
            if family is not None:
                yield Demand(family, rows, steps.token_steps * group.count)


def _attention(
    a: GroupedQueryAttention, group: LayerGroup, candidate: Candidate, steps: StepCounts, notes: list[str]
) -> Iterator[Demand]:
    tp, kv = candidate.parallelism.tp, candidate.kv_dtype
    facts = {
        "heads": shapes.local_heads(a.heads, tp),
        "kv_heads": shapes.local_kv_heads(a.kv_heads, tp),
        "head_dim": a.head_dim,
        "rotary_dim": a.head_dim,
        "block_size": candidate.batching.block_size,
    }
    family = _family(("rope_cache",), (kv,), facts, ("tokens",), notes)
    if family is not None:
        yield Demand(family, steps.tokens[:, None], steps.token_steps * group.count)
    family = _family(("decode_attention",), (kv,), facts, ("sequences", "batch", "context"), notes)
    if family is not None:
        context = np.maximum(np.rint(steps.context), 1).astype(np.int64)
        if a.window_tokens is not None:
            context = np.minimum(context, a.window_tokens)
        yield Demand(family, np.column_stack([steps.batch, context]), steps.decode_steps * group.count)
    family = _family(("prefill_attention",), (kv,), facts, ("sequences", "tokens", "context"), notes)
    if family is not None and len(steps.chunks):
        chunks, tokens, context = (
            np.maximum(np.rint(size), 1).astype(np.int64)
            for size in (steps.chunks, steps.chunk_tokens, steps.chunk_context)
        )
        if a.window_tokens is not None:
            context = np.minimum(context, tokens + a.window_tokens)
        yield Demand(family, np.column_stack([chunks, tokens, context]), steps.chunk_steps * group.count)


def _groups(candidate: Candidate) -> str:
    q = candidate.quantization
    return f"g{q.group_size}" if q.kind == "w4a16" else q.kind


def _family(
    names: tuple[str, ...], words: tuple[str, ...], facts: Mapping[str, int], axes: tuple[str, ...], notes: list[str]
) -> Family | None:
    """The operator among `names` that there is, in the first of its formats that is, or holds, one of `words`."""
    known = targets()
    name = next((name for name in names if name in known), None)
    if name is None:
        notes.append(f"{names[0]}: fwopt has no kernel for it yet")
        return None
    operator = load_operator(name)
    chosen = [f for word in words for f in operator.formats if f == word]
    chosen += [f for word in words if word in _SCALES for f in operator.formats if word in f.split("-")]
    if not chosen:
        notes.append(f"{name}: no format {' or '.join(words)}; it has {', '.join(operator.formats)}")
        return None
    changing = tuple(d for d in operator.dimensions if d in axes)
    fixed = tuple((d, facts[d]) for d in operator.dimensions if d in facts)
    unknown = set(operator.dimensions) - set(changing) - {d for d, _ in fixed} - {"shortest"}
    if unknown or not changing:
        raise InputError(
            f"kernel {name}: tuning does not know its dimensions {', '.join(sorted(unknown))}; see demand.py"
        )
    return Family(name, chosen[0], fixed, changing)
