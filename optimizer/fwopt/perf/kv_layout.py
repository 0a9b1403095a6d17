"""Bytes that keys, values and states take on one GPU, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fwopt.spec.candidate import Batching, Candidate, KvDtype, Parallelism
from fwopt.spec.engine import EngineName
from fwopt.spec.model import LayerGroup, LinearAttention, ModelSpec
from fwopt.targets.weights import ceil_div, round_up

_BF16 = 2
_GPU_KERNEL_TOKENS = 16
_CPU_KERNEL_TOKENS = 32
"""Blocks are whole multiples of this in vLLM (`get_supported_kernel_block_sizes`)."""
_LATENT_FP8_BLOCK = 64
"""Tokens a KV block of latent attention over an FP8 cache: FlashMLA takes no other number. A smaller one, stated in
vLLM's config, would leave Triton's kernel, which nobody timed (docs/vllm-scheduling.md)."""


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
    most_state: int = 0
    """The most of them at a time."""


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
        size = _group_layers(*counts.values())
        totals = {kind: totals[kind] * round_up(counts[kind], size) // counts[kind] for kind in counts}
    stage = ceil_div(model.layer_count, parallelism.pp)
    full, sliding_bytes = (ceil_div(totals[kind] * stage, model.layer_count) for kind in (False, True))
    state = ceil_div(state * stage, model.layer_count)
    return KvLayout(full=full, sliding=sliding_bytes, window_tokens=window, state=state, most_state=state)


def _group_layers(one: int, other: int) -> int:
    """Layers that vLLM puts in every group where a model has `one` and `other` of two kinds."""
    least, most = sorted((one, other))
    return least if most >= 1.5 * least else most


@dataclass(frozen=True, slots=True)
class StatePages:
    """How vLLM lays states of linear attention into the pool of KV blocks. A state takes as many bytes as the block of
    one full-attention layer, so blocks are made long enough to hold one."""

    block_size: int
    """Tokens a block."""
    blocks: int
    """Blocks that the states of one sequence take."""
    padding: int
    """Bytes a token of the layers that fill up the groups: a block is as wide as the widest group of the stage."""


def state_pages(
    model: ModelSpec, kv_dtype: KvDtype, parallelism: Parallelism, block_size: int, step: int
) -> StatePages | None:
    """None for a model without linear attention. `block_size` is what was asked for, the least that is taken; `step`
    the tokens that the attention kernel takes whole (`platforms/interface.py` 0.32, `_align_hybrid_block_size`)."""
    linear = [group for group in model.layers if group.attention.kind == "gdn"]
    full = [group for group in model.layers if group.attention.kind != "gdn"]
    if not linear or not full:
        return None
    state = max(state_bytes(g.attention, parallelism.tp) for g in linear if g.attention.kind == "gdn")
    token = layer_kv_bytes(full[0], kv_dtype, parallelism.tp)
    unit = max(step, block_size)
    tokens = max(block_size, round_up(unit * ceil_div(state, unit * token), step))
    states, layers = (sum(group.count for group in kind) for kind in (linear, full))
    size = _group_layers(states, layers)
    padded = round_up(layers, size)
    on_stage = ceil_div(padded * ceil_div(model.layer_count, parallelism.pp), model.layer_count)
    own = kv_layout(model, kv_dtype, parallelism).full
    return StatePages(
        block_size=tokens,
        blocks=ceil_div(round_up(states, size), padded),
        padding=on_stage * token - own,
    )


def attention_block(model: ModelSpec, kv_dtype: KvDtype) -> int | None:
    """Tokens a KV block that vLLM takes where none are stated; None: as many as for any model."""
    latent = any(group.attention.kind == "mla" for group in model.layers)
    return _LATENT_FP8_BLOCK if latent and kv_dtype == "fp8" else None


def whole_layout(model: ModelSpec, draft: ModelSpec | None, kv_dtype: KvDtype, parallelism: Parallelism) -> KvLayout:
    """Of a model and the one that guesses ahead for it, if any: they share blocks."""
    layout = kv_layout(model, kv_dtype, parallelism)
    if draft is None:
        return layout
    beside = kv_layout(draft, kv_dtype, parallelism)
    return replace(layout, full=layout.full + beside.full, sliding=layout.sliding + beside.sliding)


def engine_layout(
    model: ModelSpec, draft: ModelSpec | None, candidate: Candidate, engine: EngineName, *, processor: bool
) -> tuple[KvLayout, Batching]:
    """Layout and batching as the engine takes them: vLLM lengthens the blocks of models with linear attention.

    With a prefix cache it keeps a sequence's previous states while it writes the next.
    """
    layout, batching = whole_layout(model, draft, candidate.kv_dtype, candidate.parallelism), candidate.batching
    step = _CPU_KERNEL_TOKENS if processor else _GPU_KERNEL_TOKENS
    pages = state_pages(model, candidate.kv_dtype, candidate.parallelism, batching.block_size, step)
    if engine != "vllm" or pages is None:
        return layout, batching
    full = layout.full + pages.padding
    state = pages.blocks * pages.block_size * full
    most = 2 * state if batching.prefix_caching else state
    return (
        replace(layout, full=full, state=state, most_state=most),
        batching.model_copy(update={"block_size": pages.block_size}),
    )


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
