"""Qwen3.5: three layers of linear attention (Gated DeltaNet) to one of gated softmax attention.

The language model stands inside a multimodal config; its multi-token-prediction module is left out.
"""

from __future__ import annotations

from fwopt.spec.model import Attention, DenseMlp, LinearAttention, Mlp, MoeMlp
from fwopt.targets.config import Config
from fwopt.targets.parsers.dense import attention
from fwopt.targets.parsers.shape import Shape, shape

_STATE_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def qwen3_5(config: Config) -> Shape:
    text = config.section("text_config")
    return _hybrid(config, text, DenseMlp(intermediate_size=text.integer("intermediate_size")))


def qwen3_5_moe(config: Config) -> Shape:
    text = config.section("text_config")
    if text.items("mlp_only_layers", int):
        raise text.error("mlp_only_layers", "dense layers among sparse ones are not modelled here, must be empty")
    experts = MoeMlp(
        experts=text.integer("num_experts"),
        experts_per_token=text.integer("num_experts_per_tok"),
        expert_intermediate_size=text.integer("moe_intermediate_size"),
        shared_intermediate_size=text.optional("shared_expert_intermediate_size"),
    )
    return _hybrid(config, text, experts)


def _hybrid(config: Config, text: Config, mlp: Mlp) -> Shape:
    count, period = text.integer("num_hidden_layers"), text.integer("full_attention_interval", 4)
    kinds = text.items("layer_types", str, count) or [
        "linear_attention" if (i + 1) % period else "full_attention" for i in range(count)
    ]
    full = attention(text, head_dim=256)
    if text.flag("attn_output_gate", True):
        full = full.model_copy(update={"output_gate": True})
    by_kind: dict[str, Attention] = {"linear_attention": _linear(text), "full_attention": full}
    unknown = set(kinds) - set(by_kind)
    if unknown:
        raise text.error("layer_types", f"{sorted(unknown)} is not modelled for this architecture")
    if "full_attention" not in kinds:
        field = "layer_types" if text.has("layer_types") else "full_attention_interval"
        raise text.error(field, "models without a layer of full attention are not modelled")
    return shape(text, [(by_kind[kind], mlp) for kind in kinds], tied=config.flag("tie_word_embeddings", False))


def _linear(text: Config) -> LinearAttention:
    stated = text.text("mamba_ssm_dtype") or "float32"
    if stated not in _STATE_DTYPES:
        raise text.error("mamba_ssm_dtype", f"must be one of {', '.join(_STATE_DTYPES)}")
    return LinearAttention.model_validate(
        {
            "key_heads": text.integer("linear_num_key_heads"),
            "value_heads": text.integer("linear_num_value_heads"),
            "key_head_dim": text.integer("linear_key_head_dim"),
            "value_head_dim": text.integer("linear_value_head_dim"),
            "conv_tokens": text.integer("linear_conv_kernel_dim"),
            "state_dtype": _STATE_DTYPES[stated],
        }
    )
