"""Gemma 2, 3 and 4: sliding and full layers, tied embeddings. Vision and audio towers are left out.

Published Gemma 3 text configs leave out fields that have the library's defaults; those defaults (transformers'
`Gemma3TextConfig`) are written here next to the field.
"""

from __future__ import annotations

from fwopt.spec.model import Attention, DenseMlp, GroupedQueryAttention, Mlp, MoeMlp
from fwopt.targets.config import Config
from fwopt.targets.parsers.dense import attention
from fwopt.targets.parsers.shape import Shape, grouped, shape


def gemma2(config: Config) -> Shape:
    """Even layers slide, odd layers see everything."""
    mlp = DenseMlp(intermediate_size=config.integer("intermediate_size"))
    sliding = attention(config, head_dim=256, window_tokens=config.integer("sliding_window"))
    full = attention(config, head_dim=256)
    count = config.integer("num_hidden_layers")
    return shape(config, [(full if i % 2 else sliding, mlp) for i in range(count)], tied=True)


def gemma3_multimodal(config: Config) -> Shape:
    return gemma3(config.section("text_config"))


def gemma3(config: Config) -> Shape:
    """Five sliding layers, then a full one, unless `layer_types` or `sliding_window_pattern` says otherwise."""
    count, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads", 8)
    mlp = DenseMlp(intermediate_size=config.integer("intermediate_size"))
    period = config.integer("sliding_window_pattern", 6)
    kinds = config.items("layer_types", str, count) or [
        "sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)
    ]

    def gqa(window_tokens: int | None) -> GroupedQueryAttention:
        return GroupedQueryAttention(
            heads=heads,
            kv_heads=config.integer("num_key_value_heads", 4),
            head_dim=config.integer("head_dim", 256),
            window_tokens=window_tokens,
        )

    by_kind = {"sliding_attention": gqa(config.integer("sliding_window")), "full_attention": gqa(None)}
    return Shape(
        hidden_size=config.integer("hidden_size"),
        vocab_size=config.integer("vocab_size", 262_208),
        layers=grouped((by_kind[_known(config, kind)], mlp) for kind in kinds),
        max_context_tokens=config.integer("max_position_embeddings", 131_072),
        tied_embeddings=config.flag("tie_word_embeddings", True),
    )


def gemma4_multimodal(config: Config) -> Shape:
    """Full layers have their own head size and share keys with values; experts run beside a dense MLP."""
    text = config.section("text_config")
    for field in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if text.optional(field):
            raise text.error(field, "this Gemma 4 variant is not modelled, must be 0")
    count = text.integer("num_hidden_layers")
    kinds = text.items("layer_types", str, count)
    if kinds is None:
        raise text.error("layer_types", "must be a list of str")
    heads, kv_heads = text.integer("num_attention_heads"), text.integer("num_key_value_heads")
    shared_kv = text.flag("attention_k_eq_v", False)
    by_kind: dict[str, Attention] = {
        "sliding_attention": GroupedQueryAttention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=text.integer("head_dim"),
            window_tokens=text.integer("sliding_window"),
        ),
        "full_attention": GroupedQueryAttention(
            heads=heads,
            kv_heads=text.integer("num_global_key_value_heads", kv_heads),
            head_dim=text.integer("global_head_dim"),
            shared_kv=shared_kv,
        ),
    }
    mlp = _gemma4_mlp(text)
    return shape(text, [(by_kind[_known(text, kind)], mlp) for kind in kinds], tied=True)


def _gemma4_mlp(text: Config) -> Mlp:
    width = text.integer("intermediate_size")
    if not text.flag("enable_moe_block", False):
        return DenseMlp(intermediate_size=width)
    return MoeMlp(
        experts=text.integer("num_experts"),
        experts_per_token=text.integer("top_k_experts"),
        expert_intermediate_size=text.integer("moe_intermediate_size"),
        shared_intermediate_size=width,
    )


def _known(config: Config, kind: str) -> str:
    if kind not in ("sliding_attention", "full_attention"):
        raise config.error("layer_types", f"'{kind}' is not modelled for this architecture")
    return kind
