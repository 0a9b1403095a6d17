"""Llama and its dense relatives: grouped-query attention and a gated MLP in every layer."""

from __future__ import annotations

from fwopt.spec.model import DenseMlp, GroupedQueryAttention
from fwopt.targets.config import Config
from fwopt.targets.parsers.shape import Shape, shape


def attention(
    config: Config, *, qkv_bias: bool = False, head_dim: int | None = None, window_tokens: int | None = None
) -> GroupedQueryAttention:
    """Attention of one layer; `head_dim` is the family's default, else hidden size over heads."""
    heads = config.integer("num_attention_heads")
    if head_dim is None and not config.has("head_dim"):
        hidden = config.integer("hidden_size")
        if hidden % heads:
            raise config.error("num_attention_heads", f"must divide hidden_size ({hidden}) when head_dim is absent")
        head_dim = hidden // heads
    return GroupedQueryAttention(
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", head_dim),
        window_tokens=window_tokens,
        qkv_bias=config.flag("attention_bias", qkv_bias),
    )


def _uniform(config: Config, layer_attention: GroupedQueryAttention) -> Shape:
    mlp = DenseMlp(intermediate_size=config.integer("intermediate_size"))
    return shape(config, [(layer_attention, mlp)] * config.integer("num_hidden_layers"))


def mistral(config: Config) -> Shape:
    """Without the field, the library's own window counts (transformers' `MistralConfig`); null means none."""
    return llama(config if "sliding_window" in config.fields() else config.extended({"sliding_window": 4096}))


def llama(config: Config) -> Shape:
    """Where `sliding_window` is stated, the layers that `layer_types` names slide, or all of them, as in vLLM."""
    count = config.integer("num_hidden_layers")
    window = config.optional("sliding_window")
    kinds = config.items("layer_types", str, count) or ["sliding_attention" if window else "full_attention"] * count
    for kind in set(kinds) - {"sliding_attention", "full_attention"}:
        raise config.error("layer_types", f"'{kind}' is not modelled for this architecture")
    if "sliding_attention" in kinds:
        window = config.integer("sliding_window")
    sliding, full = attention(config, window_tokens=window), attention(config)
    mlp = DenseMlp(intermediate_size=config.integer("intermediate_size"))
    return shape(config, [(sliding if kind == "sliding_attention" else full, mlp) for kind in kinds])


def qwen2(config: Config) -> Shape:
    """q, k and v projections carry a bias whether or not the config says so."""
    refuse_window(config)
    return _uniform(config, attention(config, qkv_bias=True))


def qwen3(config: Config) -> Shape:
    refuse_window(config)
    return _uniform(config, attention(config, head_dim=128))


def refuse_window(config: Config) -> None:
    if config.flag("use_sliding_window", False):
        raise config.error("use_sliding_window", "mixed sliding windows of Qwen models are not modelled, must be false")
