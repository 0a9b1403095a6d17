"""Bytes that keys, values and states take on one GPU, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fwopt.spec.candidate import KvDtype, Parallelism
from fwopt.spec.model import LayerGroup, LinearAttention, ModelSpec
from fwopt.targets.weights import ceil_div, round_up

_BF16 = 2


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Bytes of KV cache per token on one GPU, by what a layer keeps."""

    full: int
    """Layers that keep every token."""
    sliding: int
    """Layers that keep a window."""
    window_tokens: int
    """Longest window; 0 without sliding layers."""
    state: int = 0
    """Bytes that a sequence holds on one GPU however long it is: the states of linear attention."""


def kv_layout(model: ModelSpec, kv_dtype: KvDtype, parallelism: Parallelism) -> KvLayout:
    """KV bytes per token on the fullest pipeline stage of one GPU.

    Heads are sharded by tp and replicated when there are fewer than tp; the latent vector of MLA is never sharded.
    When full and sliding layers mix, vLLM puts equally many layers in every group and pads the last one.
    """
    counts = {True: 0, False: 0}
    totals = {True: 0, False: 0}
    window = state = 0
    for group in model.layers:
        if group.attention.kind == "gdn":
            state += group.count * state_bytes(group.attention, parallelism.tp)
            continue
        own_window = group.attention.window_tokens if group.attention.kind == "gqa" else None
        sliding = own_window is not None
        counts[sliding] += group.count
        totals[sliding] += group.count * layer_kv_bytes(group, kv_dtype, parallelism.tp)
        window = max(window, own_window or 0)
    if counts[True] and counts[False]:
        size = min(counts.values()) if max(counts.values()) >= 1.5 * min(counts.values()) else max(counts.values())
        totals = {kind: totals[kind] * round_up(counts[kind], size) // counts[kind] for kind in counts}
    stage = ceil_div(model.layer_count, parallelism.pp)
    full, sliding_bytes = (ceil_div(totals[kind] * stage, model.layer_count) for kind in (False, True))
    state = ceil_div(state * stage, model.layer_count)
    return KvLayout(full=full, sliding=sliding_bytes, window_tokens=window, state=state)


def whole_layout(model: ModelSpec, draft: ModelSpec | None, kv_dtype: KvDtype, parallelism: Parallelism) -> KvLayout:
    """Of a model and the one that guesses ahead for it, if any: they share blocks."""
    layout = kv_layout(model, kv_dtype, parallelism)
    if draft is None:
        return layout
    beside = kv_layout(draft, kv_dtype, parallelism)
    return replace(layout, full=layout.full + beside.full, sliding=layout.sliding + beside.sliding)


def state_bytes(attention: LinearAttention, tp: int) -> int:
    """What one sequence holds in one layer on one GPU: the recurrent state and the convolution's last tokens."""
    query_key, value = attention.projected(tp)
    size = 4 if attention.state_dtype == "fp32" else _BF16
    recurrent = value * attention.key_head_dim * size
    return recurrent + (attention.conv_tokens - 1) * (query_key + value) * _BF16


def layer_kv_bytes(group: LayerGroup, kv_dtype: KvDtype, tp: int) -> int:
    """KV bytes of one token in one layer on one GPU. vLLM stores keys and values apart even where they are equal."""
    size = 1 if kv_dtype == "fp8" else _BF16
    attention = group.attention
    if attention.kind == "gdn":
        return 0
    if attention.kind == "mla":
        return (attention.kv_lora_rank + attention.qk_rope_head_dim) * size
    return 2 * max(1, attention.kv_heads // tp) * attention.head_dim * size
