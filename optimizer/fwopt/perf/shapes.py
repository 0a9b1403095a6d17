"""What one GPU computes: a model's layers after quantization and sharding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fwopt.errors import UnmeasuredError
from fwopt.perf.operators.elementwise import Kernel
from fwopt.spec.candidate import Parallelism, Quantization, outside_experts
from fwopt.spec.model import LayerGroup, ModelSpec
from fwopt.targets.weights import (
    VOCAB_PADDING,
    Linear,
    attention_linears,
    dense_linears,
    gate_linear,
    latent_linears,
    round_up,
)

_BF16 = 2.0


@dataclass(frozen=True, slots=True)
class Scheme:
    """Dtype of each kind of weight; embeddings, LM head, router and norms stay bf16 in all that have tables."""

    attention: str
    dense: str
    experts: str


def scheme(quantization: Quantization) -> Scheme:
    """What each quantization converts."""
    outside = _dtype(outside_experts(quantization))
    return Scheme(outside, outside, _dtype(quantization))


def _dtype(quantization: Quantization) -> str:
    """A scheme's name in operator tables."""
    return "fp8_block" if quantization.kind == "fp8" and quantization.scale == "block" else quantization.kind


@dataclass(frozen=True, slots=True)
class Product:
    """One (tokens, k) x (k, n) product."""

    dtype: str
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class Experts:
    """One expert layer on one rank."""

    dtype: str
    hidden: int
    inter: int
    """Width of one whole expert."""
    topk: int
    experts: int
    tp: int
    ep: int
    sharers: int
    """Data-parallel ranks, each of which brings the step's tokens to the same experts."""


@dataclass(frozen=True, slots=True)
class Elementwise:
    """One bandwidth-bound kernel after the engine's fusions."""

    bytes_per_token: float
    kernel: Kernel | None = None
    """fwopt's own that does it."""
    fused: bool = False
    """fwopt's kernel of the entry before does this, too."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Everything in one decoder layer that depends on the step's tokens only, on one GPU."""

    products: tuple[Product, ...]
    elementwise: tuple[Elementwise, ...]
    experts: Experts | None

    @property
    def kernels(self) -> int:
        """Launches: per-tensor quantized activations need one more a product, the experts' operator about eight."""
        quantized = sum(p.dtype in ("fp8", "int8") for p in self.products)
        return len(self.products) + quantized + len(self.elementwise) + (8 if self.experts else 0)


def local_heads(heads: int, tp: int) -> int:
    if heads % tp:
        raise UnmeasuredError(f"{heads} attention heads cannot be split over tp={tp}; choose a divisor")
    return heads // tp


def local_kv_heads(kv_heads: int, tp: int) -> int:
    """KV heads on one GPU: replicated once there are fewer of them than GPUs."""
    return max(kv_heads // tp, 1)


def vocabulary(model: ModelSpec, tp: int) -> int:
    """Columns of the LM head on one GPU."""
    return round_up(model.vocab_size, VOCAB_PADDING) // tp


def fuses_shared_expert(engine: str, group: LayerGroup, parallelism: Parallelism) -> bool:
    """SGLang computes DeepSeek-V3's and R1's shared expert as a 257th routed one that every token takes
    (`determine_num_fused_shared_experts` in its models/deepseek_v2.py, 0.5.8; not under expert parallelism)."""
    mlp = group.mlp
    return (
        engine == "sglang"
        and mlp.kind == "moe"
        and group.attention.kind == "mla"
        and (mlp.experts, mlp.shared_intermediate_size) == (256, mlp.expert_intermediate_size)
        and not parallelism.ep
    )


def with_shared_expert_routed(group: LayerGroup) -> LayerGroup:
    """The same layer with its shared expert among the routed ones."""
    mlp = group.mlp
    assert mlp.kind == "moe"
    fused = {"experts": mlp.experts + 1, "experts_per_token": mlp.experts_per_token + 1}
    return group.model_copy(update={"mlp": mlp.model_copy(update={**fused, "shared_intermediate_size": None})})


def layer(model: ModelSpec, group: LayerGroup, quantization: Quantization, parallelism: Parallelism) -> Layer:
    """Shapes of one layer of `group` on one GPU; latent attention's way up from the latent vector is not in it."""
    dtypes, hidden, tp = scheme(quantization), model.hidden_size, parallelism.tp
    products: list[Product] = []
    # norms: activations and residual, read and written
    elementwise = [Elementwise(4 * _BF16 * hidden, Kernel("rms_norm", columns=hidden))] * 2
    if group.attention.kind == "gqa":
        a = group.attention
        heads, kv_heads = local_heads(a.heads, tp), local_kv_heads(a.kv_heads, tp)
        products += _products(attention_linears(a, hidden, tp), dtypes.attention)
        rope = Kernel("rope_cache", heads=heads, kv_heads=kv_heads, head_dim=a.head_dim)
        elementwise += [
            Elementwise(2 * _BF16 * (heads + kv_heads) * a.head_dim, rope),
            Elementwise(4 * _BF16 * kv_heads * a.head_dim, fused=True),
        ]  # rope, KV write
        if a.output_gate:
            elementwise.append(Elementwise(3 * _BF16 * heads * a.head_dim))
    elif group.attention.kind == "gdn":
        gdn = group.attention
        gate = gate_linear(gdn, hidden, tp)
        products += _products((m for m in attention_linears(gdn, hidden, tp) if m != gate), dtypes.attention)
        products.append(Product("bf16", gate.n, gate.k))
        query_key, value = gdn.projected(tp)
        elementwise += [Elementwise(2 * _BF16 * (query_key + value)), Elementwise(3 * _BF16 * value)]
        # split and norm, gated norm of the output
    else:
        mla = group.attention
        heads = local_heads(mla.heads, tp)
        products += _products(latent_linears(mla, hidden, heads), dtypes.attention)
        elementwise += [
            Elementwise(2 * _BF16 * ((mla.q_lora_rank or 0) + mla.kv_lora_rank)),
            Elementwise(2 * _BF16 * (heads + 1) * mla.qk_rope_head_dim),
            Elementwise(2 * _BF16 * (mla.kv_lora_rank + mla.qk_rope_head_dim)),
        ]  # norms of the latent vectors, rope, KV write
    dense = _products(dense_linears(group.mlp, hidden, tp), dtypes.dense)
    if dense:
        gate_up, down = dense[0].n, dense[1].k
        elementwise.append(Elementwise(_BF16 * (gate_up + down), Kernel("silu_mul", columns=down)))  # gate activation
    experts = None
    if group.mlp.kind == "moe":
        mlp, ranks = group.mlp, tp * parallelism.dp
        products.append(Product("bf16", mlp.experts, hidden))
        elementwise.append(Elementwise(2 * _BF16 * mlp.experts))  # softmax and top-k of the router
        if dense:
            elementwise.append(Elementwise(3 * _BF16 * hidden))  # sum of shared and routed experts
        over, whole = (1, ranks) if parallelism.ep else (ranks, 1)
        width, topk = mlp.expert_intermediate_size, mlp.experts_per_token
        experts = Experts(dtypes.experts, hidden, width, topk, mlp.experts, over, whole, parallelism.dp)
    # DeepGEMM's block-FP8 rows leave out quantizing the activations; per-tensor rows hold it
    elementwise += [Elementwise(3.0 * p.k) for p in products + dense if p.dtype == "fp8_block"]
    return Layer(tuple(products + dense), tuple(elementwise), experts)


def _products(linears: Iterable[Linear], dtype: str) -> list[Product]:
    return [Product(dtype, m.n, m.k) for m in linears]
