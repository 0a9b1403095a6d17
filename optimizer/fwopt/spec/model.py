"""What fwopt knows of a model: the facts of its `config.json` that decide time and memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fwopt.spec.base import Frozen


class GroupedQueryAttention(Frozen):
    """Softmax attention with `kv_heads` key/value heads shared by `heads` query heads (MHA: equal)."""

    kind: Literal["gqa"] = "gqa"
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    window_tokens: PositiveInt | None = None
    """Sliding-window length in tokens; None attends to the whole context."""
    qkv_bias: bool = False
    output_gate: bool = False
    """The query projection also yields a gate on the attention's output, as wide as the queries (Qwen3.5)."""
    shared_kv: bool = False
    """Keys double as values (Gemma 4 global layers): one cached tensor instead of two."""


class LatentAttention(Frozen):
    """Multi-head latent attention (DeepSeek MLA): one compressed KV vector a token, shared by all heads."""

    kind: Literal["mla"] = "mla"
    heads: PositiveInt
    q_lora_rank: PositiveInt | None
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt


class LinearAttention(Frozen):
    """Gated DeltaNet (Qwen3.5): a state of fixed size a sequence instead of a KV cache, behind a short convolution."""

    kind: Literal["gdn"] = "gdn"
    key_heads: PositiveInt
    value_heads: PositiveInt
    key_head_dim: PositiveInt
    value_head_dim: PositiveInt
    conv_tokens: PositiveInt
    """Tokens that the causal convolution over queries, keys and values sees."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the recurrent state, as engines keep it; the convolution's is bf16."""

    @property
    def heads(self) -> int:
        return self.key_heads

    def projected(self, tp: int) -> tuple[int, int]:
        """(queries and keys, values) on one of `tp` GPUs, in numbers a token."""
        return 2 * self.key_heads // tp * self.key_head_dim, self.value_heads // tp * self.value_head_dim


Attention = Annotated[GroupedQueryAttention | LatentAttention | LinearAttention, Field(discriminator="kind")]


class DenseMlp(Frozen):
    """Feed-forward block; gated (SwiGLU/GeGLU) has a fused gate+up projection."""

    kind: Literal["dense"] = "dense"
    intermediate_size: PositiveInt
    gated: bool = True


class MoeMlp(Frozen):
    """Mixture of experts: `experts_per_token` of `experts` run for each token, plus shared experts."""

    kind: Literal["moe"] = "moe"
    experts: PositiveInt
    experts_per_token: PositiveInt
    expert_intermediate_size: PositiveInt
    shared_intermediate_size: PositiveInt | None = None
    """Width of the always-on dense branch (shared experts, or Gemma 4's parallel MLP), if any."""


Mlp = Annotated[DenseMlp | MoeMlp, Field(discriminator="kind")]


class LayerGroup(Frozen):
    """`count` identical decoder layers (not necessarily adjacent)."""

    count: PositiveInt
    attention: Attention
    mlp: Mlp


class ModelSpec(Frozen):
    """A decoder-only language model, as far as serving it costs time and memory."""

    name: str
    """Hugging Face id or the path it was read from."""
    architecture: str
    hidden_size: PositiveInt
    vocab_size: PositiveInt
    layers: tuple[LayerGroup, ...]
    max_context_tokens: PositiveInt
    tied_embeddings: bool
    checkpoint_quantization: (
        Literal["fp8_tensor", "fp8_block", "int8_channel", "mxfp4", "int4_group", "int4_experts"] | None
    ) = None
    """Scheme the published weights are stored in; None is bf16/fp16. `int4_experts`: 4-bit groups in routed experts
    alone, the rest bf16."""
    checkpoint_group_size: PositiveInt | None = None
    """Weights sharing one scale, for `int4_group` and `int4_experts` checkpoints."""
    checkpoint_zero_points: bool = False
    """Whether those groups have a 4-bit zero point each beside their scale."""
    checkpoint_kv_dtype: Literal["fp8"] | None = None
    """Dtype that the checkpoint's own config asks for in the KV cache; vLLM follows it unless told otherwise."""
    config_digest: str
    """SHA-256 (16 hex digits) of the config.json bytes."""
    source: str
    """Where the config came from: a path, the local cache or the bundled catalogue."""

    @property
    def layer_count(self) -> int:
        return sum(g.count for g in self.layers)

    @property
    def is_moe(self) -> bool:
        return any(g.mlp.kind == "moe" for g in self.layers)

    @property
    def attention_heads(self) -> int:
        return self.layers[0].attention.heads
