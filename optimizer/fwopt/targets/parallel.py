"""Which splits of a model vLLM accepts. Rules read in vLLM 0.32; each has fixed words so that it can be counted."""

from __future__ import annotations

from collections.abc import Iterator

from fwopt.spec.candidate import Parallelism, Quantization, outside_experts
from fwopt.spec.model import Attention, Mlp, ModelSpec
from fwopt.targets.quantization import native_quantization
from fwopt.targets.weights import VOCAB_PADDING, expert_shard, round_up

_FP8_BLOCK = 128


def valid_parallelism(model: ModelSpec, quantization: Quantization, parallelism: Parallelism) -> str | None:
    """The first rule that a deployment breaks, or None when vLLM would accept it."""
    for broken in (_scheme(model, quantization), _split(model, quantization, parallelism)):
        if broken is not None:
            return broken
    return _alignment(model, quantization, parallelism)


def _scheme(model: ModelSpec, quantization: Quantization) -> str | None:
    if model.checkpoint_quantization is not None and quantization != native_quantization(model):
        return "the published weights are already quantized in another scheme"
    if model.checkpoint_quantization is None and quantization.kind == "mxfp4":
        return "MXFP4 needs a checkpoint published in MXFP4"
    if model.checkpoint_quantization is None and outside_experts(quantization) != quantization:
        return "4-bit experts beside bf16 need a checkpoint published with 4-bit experts"
    return None


def _split(model: ModelSpec, quantization: Quantization, parallelism: Parallelism) -> str | None:
    tp, ranks = parallelism.tp, parallelism.tp * parallelism.dp
    if parallelism.pp > model.layer_count:
        return "more pipeline stages than layers"
    if round_up(model.vocab_size, VOCAB_PADDING) % tp:
        return "the padded vocabulary is not divisible by tp"
    if not model.is_moe and (parallelism.dp > 1 or parallelism.ep):
        return "dp and ep inside an engine are for mixture-of-experts models; use replicas"
    if parallelism.ep and ranks == 1:
        return "expert parallelism needs at least two ranks"
    for group in model.layers:
        attention, mlp = group.attention, group.mlp
        if attention.heads % tp:
            return "attention heads are not divisible by tp"
        if attention.kind == "gdn" and attention.value_heads % tp:
            return "the value heads of linear attention are not divisible by tp"
        if attention.kind == "gqa" and attention.kv_heads % tp and tp % attention.kv_heads:
            return "KV heads and tp do not divide one another"
        if (_dense_width(mlp) or 0) % tp:
            return "the MLP width is not divisible by tp"
        if mlp.kind == "moe":
            if parallelism.ep and mlp.experts < ranks:
                return "fewer experts than expert-parallel ranks"
            if not parallelism.ep and quantization.kind != "mxfp4" and mlp.expert_intermediate_size % ranks:
                return "the expert width is not divisible by tp x dp"
    return None


def _alignment(model: ModelSpec, quantization: Quantization, parallelism: Parallelism) -> str | None:
    """Scales cover blocks (fp8) or groups (int4) of a matrix, which a shard may not cut."""
    tp = parallelism.tp
    for group in model.layers:
        widths = [w // tp for w in (_dense_width(group.mlp),) if w is not None]
        expert_widths: list[int] = []
        if group.mlp.kind == "moe":
            expert_widths = [expert_shard(group.mlp, parallelism)[1]]
        outputs = [*_attention_outputs(group.attention, tp), *widths, *expert_widths]
        inputs = [_attention_input(group.attention, tp), *widths, *expert_widths]
        if quantization.kind == "fp8" and quantization.scale == "block":
            if any(n % _FP8_BLOCK for n in outputs) or (tp > 1 and any(k % _FP8_BLOCK for k in inputs)):
                return "a shard is not a multiple of the 128x128 fp8 blocks"
        elif quantization.kind == "w4a16":
            grouped = inputs if outside_experts(quantization) == quantization else expert_widths
            if any(k % quantization.group_size for k in (*grouped, model.hidden_size)):
                return "a shard is not a multiple of the int4 group size"
    return None


def _dense_width(mlp: Mlp) -> int | None:
    """Width of the layer's dense MLP or of the dense branch beside its experts."""
    return mlp.intermediate_size if mlp.kind == "dense" else mlp.shared_intermediate_size


def _attention_outputs(attention: Attention, tp: int) -> Iterator[int]:
    """Output widths on one GPU of the fused or sharded projections (where a block may not be cut)."""
    heads = attention.heads // tp
    if attention.kind == "gqa":
        yield heads * attention.head_dim
        yield max(1, attention.kv_heads // tp) * attention.head_dim
        return
    if attention.kind == "gdn":
        yield from attention.projected(tp)
        return
    if tp > 1:
        yield heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
        yield heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    if attention.q_lora_rank is not None:
        yield attention.q_lora_rank


def _attention_input(attention: Attention, tp: int) -> int:
    if attention.kind == "gdn":
        return attention.projected(tp)[1]
    width = attention.head_dim if attention.kind == "gqa" else attention.v_head_dim
    return attention.heads // tp * width
