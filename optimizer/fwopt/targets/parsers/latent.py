"""DeepSeek V2, V3 and R1, Kimi K2.5: multi-head latent attention, first layers dense, then experts with shared ones."""

from __future__ import annotations

from fwopt.spec.model import DenseMlp, LatentAttention, MoeMlp
from fwopt.targets.config import Config
from fwopt.targets.parsers.shape import Shape, shape


def kimi(config: Config) -> Shape:
    """A DeepSeek-V3 language model inside a multimodal config."""
    return deepseek(config.section("text_config"))


def deepseek(config: Config) -> Shape:
    if config.integer("moe_layer_freq", 1) != 1:
        raise config.error("moe_layer_freq", "must be 1")
    attention = LatentAttention(
        heads=config.integer("num_attention_heads"),
        q_lora_rank=config.optional("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=config.integer("qk_nope_head_dim"),
        qk_rope_head_dim=config.integer("qk_rope_head_dim"),
        v_head_dim=config.integer("v_head_dim"),
    )
    dense = DenseMlp(intermediate_size=config.integer("intermediate_size"))
    width = config.integer("moe_intermediate_size")
    shared = config.optional("n_shared_experts")
    moe = MoeMlp(
        experts=config.integer("n_routed_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_intermediate_size=width,
        shared_intermediate_size=shared * width if shared else None,
    )
    first_dense, count = config.optional("first_k_dense_replace") or 0, config.integer("num_hidden_layers")
    return shape(config, [(attention, dense if i < first_dense else moe) for i in range(count)])
