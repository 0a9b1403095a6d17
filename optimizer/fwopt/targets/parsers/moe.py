"""Grouped-query attention with a mixture of experts."""

from __future__ import annotations

from fwopt.spec.model import Attention, DenseMlp, Mlp, MoeMlp
from fwopt.targets.config import Config
from fwopt.targets.parsers.dense import attention, refuse_window
from fwopt.targets.parsers.shape import Shape, shape


def qwen3_moe(config: Config) -> Shape:
    """Every `decoder_sparse_step`-th layer is sparse, except those in `mlp_only_layers`."""
    refuse_window(config)
    moe = MoeMlp(
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_intermediate_size=config.integer("moe_intermediate_size"),
    )
    step = config.integer("decoder_sparse_step", 1)
    dense_layers = set(config.items("mlp_only_layers", int) or ())
    layer_attention = attention(config, head_dim=128)

    def mlp(index: int) -> Mlp:
        sparse = index not in dense_layers and (index + 1) % step == 0
        return moe if sparse else DenseMlp(intermediate_size=config.integer("intermediate_size"))

    return shape(config, [(layer_attention, mlp(i)) for i in range(config.integer("num_hidden_layers"))])


def mixtral(config: Config) -> Shape:
    return _uniform(config, attention(config, window_tokens=config.optional("sliding_window")))


def minimax_m2(config: Config) -> Shape:
    return _uniform(config, attention(config))


def _uniform(config: Config, layer_attention: Attention) -> Shape:
    """All layers sparse; `intermediate_size` is the width of one expert."""
    return shape(config, [(layer_attention, _local_experts(config))] * config.integer("num_hidden_layers"))


def _local_experts(config: Config) -> MoeMlp:
    return MoeMlp(
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_intermediate_size=config.integer("intermediate_size"),
        shared_intermediate_size=config.optional("shared_intermediate_size"),
    )


def gpt_oss(config: Config) -> Shape:
    """Sliding and full attention by `layer_types` (default: alternating, sliding first)."""
    count = config.integer("num_hidden_layers")
    kinds = config.items("layer_types", str, count) or ["sliding_attention", "full_attention"] * ((count + 1) // 2)
    by_kind = {
        "sliding_attention": attention(config, qkv_bias=True, window_tokens=config.integer("sliding_window")),
        "full_attention": attention(config, qkv_bias=True),
    }
    unknown = set(kinds) - set(by_kind)
    if unknown:
        raise config.error("layer_types", f"{sorted(unknown)} is not modelled for this architecture")
    moe = _local_experts(config)
    return shape(config, [(by_kind[kind], moe) for kind in kinds[:count]])
