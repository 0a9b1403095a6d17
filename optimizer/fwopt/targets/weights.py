"""The matrices of a model: how many parameters, and how many bytes on one GPU when sharded and quantized.

Shapes are (n outputs, k inputs) of the matrices as vLLM fuses and shards them. Norms beyond two a layer, per-head
norms, short convolutions, attention sinks and router biases are left out: together below 0.01 % of any model here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fwopt.spec.candidate import Gguf, Parallelism, Quantization, outside_experts
from fwopt.spec.model import Attention, LatentAttention, LayerGroup, LinearAttention, Mlp, ModelSpec, MoeMlp

GGUF_BITS = {
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_K_M": 5.643,
    "Q5_K_S": 5.501,
    "Q4_K_M": 4.777,
    "Q4_K_S": 4.534,
    "Q4_1": 5.0,
    "Q4_0": 4.5,
}
"""Bits a weight, LM head apart: exact block formats of ggml; for the mixtures (_M, _S) such that Llama-3.1-8B weighs
what llama.cpp's `tools/quantize/README.md` says (4.8944 bits for Q4_K_M with its head in Q6_K)."""
_K_BLOCK = 256
_K_FALLBACK = {"Q6": 8.5, "Q5": 6.0, "Q4": 5.5}
"""Where 256 does not divide a row: Q8_0, Q5_1, Q5_0 (`tensor_type_fallback` in `llama-quant.cpp`)."""
VOCAB_PADDING = 64
"""vLLM pads the rows of embedding and LM head to a multiple of this."""
_BF16 = 2
_SINGLE = Parallelism()


@dataclass(frozen=True, slots=True)
class Linear:
    """`copies` equal matrices of n x k on one GPU, with `biases` extra bf16 vectors of length n."""

    n: int
    k: int
    copies: int = 1
    biases: int = 0


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def attention_linears(attention: Attention, hidden: int, tp: int, *, stored: bool = False) -> Iterator[Linear]:
    """One layer's projections on one of `tp` GPUs. `stored`: as in the checkpoint, where keys that double as
    values are one matrix; vLLM loads them twice."""
    heads = ceil_div(attention.heads, tp)
    if attention.kind == "gqa":
        kv_heads = max(1, attention.kv_heads // tp)
        kv_tensors = 1 if stored and attention.shared_kv else 2
        width = attention.head_dim
        queries = heads * (2 if attention.output_gate else 1)
        yield Linear((queries + kv_tensors * kv_heads) * width, hidden, biases=int(attention.qkv_bias))
        yield Linear(hidden, heads * width)
        return
    if attention.kind == "gdn":
        query_key, value = attention.projected(tp)
        yield Linear(query_key + 2 * value, hidden)  # the second value-sized part gates the output
        yield gate_linear(attention, hidden, tp)
        yield Linear(hidden, value)
        return
    yield from latent_linears(attention, hidden, heads)
    yield latent_up(attention, heads)


def gate_linear(attention: LinearAttention, hidden: int, tp: int) -> Linear:
    """Decay and step size of every value head; bf16 in every checkpoint."""
    return Linear(2 * attention.value_heads // tp, hidden)


def latent_linears(attention: LatentAttention, hidden: int, heads: int) -> Iterator[Linear]:
    """Latent attention's projections that every token takes, cached or not."""
    qk = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    kv_down = attention.kv_lora_rank + attention.qk_rope_head_dim
    if attention.q_lora_rank is None:
        yield Linear(heads * qk, hidden)
        yield Linear(kv_down, hidden)
    else:
        yield Linear(attention.q_lora_rank + kv_down, hidden)
        yield Linear(heads * qk, attention.q_lora_rank)
    yield Linear(hidden, heads * attention.v_head_dim)


def latent_up(attention: LatentAttention, heads: int) -> Linear:
    """From the latent vector to keys and values: a product while prompts are computed, absorbed into query and output
    while tokens are generated."""
    return Linear(heads * (attention.qk_nope_head_dim + attention.v_head_dim), attention.kv_lora_rank)


def dense_linears(mlp: Mlp, hidden: int, tp: int) -> Iterator[Linear]:
    """The dense MLP of a layer: all of it, or the always-on branch beside the experts."""
    width = mlp.shared_intermediate_size if mlp.kind == "moe" else mlp.intermediate_size
    if width is not None:
        gated = mlp.kind == "moe" or mlp.gated
        shard = ceil_div(width, tp)
        yield Linear((2 if gated else 1) * shard, hidden)
        yield Linear(hidden, shard)


def expert_shard(mlp: MoeMlp, parallelism: Parallelism) -> tuple[int, int]:
    """(experts, width of each) on one GPU: whole experts with `ep`, slices of all of them otherwise."""
    ranks = parallelism.tp * parallelism.dp
    if parallelism.ep:
        return ceil_div(mlp.experts, ranks), mlp.expert_intermediate_size
    return mlp.experts, ceil_div(mlp.expert_intermediate_size, ranks)


def expert_linears(mlp: MoeMlp, hidden: int, parallelism: Parallelism, *, mxfp4: bool = False) -> Iterator[Linear]:
    """Routed experts on one GPU. vLLM's MXFP4 kernels pad experts to 256 hidden x 128 inner and add biases."""
    experts, width = expert_shard(mlp, parallelism)
    if mxfp4:
        hidden, width = round_up(hidden, 256), round_up(width, 128)
    yield Linear(2 * width, hidden, copies=experts, biases=int(mxfp4))
    yield Linear(hidden, width, copies=experts, biases=int(mxfp4))


def parameter_count(model: ModelSpec) -> int:
    """Parameters of the language model as published (no multi-token-prediction head, no vision tower)."""
    hidden = model.hidden_size
    total = model.vocab_size * hidden * (1 if model.tied_embeddings else 2) + hidden
    for group in model.layers:
        linears = [*attention_linears(group.attention, hidden, 1, stored=True), *dense_linears(group.mlp, hidden, 1)]
        layer = 2 * hidden
        if group.mlp.kind == "moe":
            linears += expert_linears(group.mlp, hidden, _SINGLE)
            layer += group.mlp.experts * hidden
            if model.checkpoint_quantization == "mxfp4":  # gpt-oss: its experts have biases
                layer += group.mlp.experts * (2 * group.mlp.expert_intermediate_size + hidden)
        total += group.count * (layer + sum(m.copies * m.n * (m.k + m.biases) for m in linears))
    return total


def weight_bytes(model: ModelSpec, quantization: Quantization, parallelism: Parallelism) -> int:
    """Bytes of weights on the fullest GPU.

    Embeddings, LM head, router and norms stay bf16 in every scheme but GGUF's, which quantize the first two; some
    schemes quantize routed experts only. With pipeline stages, layers are spread evenly and the fullest stage also
    holds the embedding or the LM head (both when tied or alone).
    """
    layers = sum(g.count * layer_bytes(model, g, quantization, parallelism) for g in model.layers)
    per_stage = ceil_div(layers * ceil_div(model.layer_count, parallelism.pp), model.layer_count)
    numbers = round_up(model.vocab_size, VOCAB_PADDING) // parallelism.tp * model.hidden_size
    head = embedding = 8.0 * _BF16
    if quantization.kind == "gguf":
        head, embedding = _gguf_head_bits(quantization, model.hidden_size), _gguf_bits(quantization, model.hidden_size)
    tables = head if model.tied_embeddings or parallelism.pp > 1 else head + embedding
    return per_stage + round(numbers * tables / 8) + model.hidden_size * _BF16


def _gguf_bits(gguf: Gguf, k: int) -> float:
    """Of a matrix with rows of `k`."""
    if "_K" in gguf.type and k % _K_BLOCK:
        return _K_FALLBACK[gguf.type[:2]]
    return GGUF_BITS[gguf.type]


def _gguf_head_bits(gguf: Gguf, k: int) -> float:
    """Of the LM head, which may be the embedding, too: Q6_K in every quantized format but Q8_0."""
    if GGUF_BITS[gguf.type] >= GGUF_BITS["Q8_0"]:
        return GGUF_BITS[gguf.type]
    return _gguf_bits(Gguf(type="Q6_K"), k)


def layer_bytes(model: ModelSpec, group: LayerGroup, quantization: Quantization, parallelism: Parallelism) -> int:
    """Bytes of one layer's weights, scales and biases on one GPU."""
    hidden, tp = model.hidden_size, parallelism.tp
    mxfp4 = quantization.kind == "mxfp4"
    outside = outside_experts(quantization)
    zeros = model.checkpoint_zero_points
    linears = [*attention_linears(group.attention, hidden, tp), *dense_linears(group.mlp, hidden, tp)]
    total = sum(_linear_bytes(m, outside, zeros) for m in linears) + 2 * hidden * _BF16
    attention = group.attention
    if attention.kind == "mla":
        # after loading, vLLM keeps the KV up-projection a second time in bf16, split for the absorbed decode path
        per_head = attention.kv_lora_rank * (attention.qk_nope_head_dim + attention.v_head_dim)
        total += ceil_div(attention.heads, tp) * per_head * _BF16
    if group.mlp.kind == "moe":
        total += group.mlp.experts * hidden * _BF16
        total += sum(
            _linear_bytes(m, quantization, zeros) for m in expert_linears(group.mlp, hidden, parallelism, mxfp4=mxfp4)
        )
    return total


def _linear_bytes(linear: Linear, quantization: Quantization, zero_points: bool) -> int:
    """`zero_points`: of 4 bits, one for each group of 4-bit weights, as the checkpoint packs them."""
    n, k = linear.n, linear.k
    match quantization.kind:
        case "bf16":
            size = n * k * _BF16
        case "fp8" if quantization.scale == "tensor":
            size = n * k + 4
        case "fp8":
            size = n * k + 4 * ceil_div(n, 128) * ceil_div(k, 128)
        case "int8":
            size = n * k + 4 * n
        case "w4a16":
            groups = n * ceil_div(k, quantization.group_size)
            size = n * k // 2 + groups * _BF16 + (ceil_div(groups, 2) if zero_points else 0)
        case "mxfp4":
            size = n * k // 2 + n * ceil_div(k, 32)
        case "gguf":
            size = round(n * k * _gguf_bits(quantization, k) / 8)
    return linear.copies * (size + linear.biases * n * _BF16)
