"""What the engine needs to know of a model, from its config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwopt.errors import InputError, UnknownNameError
from fwopt.targets.config import Config

ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class Experts:
    count: int
    per_token: int
    intermediate_size: int
    normalize: bool
    """Weights of the chosen experts sum to one."""
    biased: bool
    """gpt-oss: biases, SwiGLU clamped at `limit`, softmax over the chosen experts alone."""
    limit: float = 7.0


@dataclass(frozen=True, slots=True)
class Layer:
    window_tokens: int | None
    """A token sees this many tokens, itself included; None: all before it."""
    experts: Experts | None
    """None: a dense MLP."""


@dataclass(frozen=True, slots=True)
class Architecture:
    name: str
    hidden_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    layers: tuple[Layer, ...]
    norm_eps: float
    rope: Rope
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Queries and keys are normalised head by head (Qwen3)."""
    sinks: bool
    """One logit a head joins every softmax without a value (gpt-oss)."""
    max_position: int
    end_ids: frozenset[int]
    """Tokens that end a text."""


def read_architecture(folder: Path) -> Architecture:
    """From `config.json`, and `generation_config.json` where there is one."""
    values = _json(folder / "config.json")
    generation = folder / "generation_config.json"
    ends = _json(generation).get("eos_token_id") if generation.is_file() else None
    return from_config(values, str(folder / "config.json"), ends)


def from_config(values: Mapping[str, Any], label: str, end_ids: int | list[int] | None = None) -> Architecture:
    config = Config(values, label)
    name = (config.items("architectures", str) or ["(none)"])[0]
    if name not in ARCHITECTURES:
        raise UnknownNameError("architecture", name, ARCHITECTURES, hint="the reference engine runs no other")
    if config.has("hidden_act") and config.text("hidden_act") != "silu":
        raise config.error("hidden_act", "the reference engine knows silu only")
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    gpt_oss, qwen = name == "GptOssForCausalLM", name.startswith("Qwen3")
    bias = config.flag("attention_bias", gpt_oss)
    ends = values.get("eos_token_id") if end_ids is None else end_ids
    return Architecture(
        name=name,
        hidden_size=hidden,
        vocab_size=config.integer("vocab_size"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", hidden // heads),
        intermediate_size=config.integer("intermediate_size"),
        layers=_layers(values, config, name),
        norm_eps=_number(values, "rms_norm_eps", 1e-6),
        rope=_rope(values, config),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
        qk_norm=qwen,
        sinks=gpt_oss,
        max_position=config.integer("max_position_embeddings"),
        end_ids=frozenset([ends] if isinstance(ends, int) else ends or []),
    )


def _layers(values: Mapping[str, Any], config: Config, name: str) -> tuple[Layer, ...]:
    count = config.integer("num_hidden_layers")
    kinds = config.items("layer_types", str, count) or ["full_attention"] * count
    if name == "GptOssForCausalLM" and not config.has("layer_types"):
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise InputError(f"{config.label}: layer_types: must be full_attention or sliding_attention, got {unknown}")
    window = config.optional("sliding_window")
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    experts = _experts(values, config, name)
    dense = set(config.items("mlp_only_layers", int) or [])
    sparse_step = config.integer("decoder_sparse_step", 1)
    return tuple(Layer(windows[i], None if i in dense or (i + 1) % sparse_step else experts) for i in range(count))


def _experts(values: Mapping[str, Any], config: Config, name: str) -> Experts | None:
    if name == "Qwen3MoeForCausalLM":
        return Experts(
            count=config.integer("num_local_experts" if config.has("num_local_experts") else "num_experts"),
            per_token=config.integer("num_experts_per_tok"),
            intermediate_size=config.integer("moe_intermediate_size"),
            normalize=config.flag("norm_topk_prob", False),
            biased=False,
        )
    if name == "GptOssForCausalLM":
        limit = values.get("swiglu_limit")
        return Experts(
            count=config.integer("num_local_experts"),
            per_token=config.integer("num_experts_per_tok"),
            intermediate_size=config.integer("intermediate_size"),
            normalize=True,
            biased=True,
            limit=7.0 if limit is None else float(limit),
        )
    return None


def _rope(values: Mapping[str, Any], config: Config) -> Rope:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of its predecessors."""
    section = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = _number(section, "rope_theta", _number(values, "rope_theta", 10_000.0))
    kind = section.get("rope_type") or section.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise InputError(f"{config.label}: rope_type: must be default, linear, llama3 or yarn, got {kind!r}")
    attention = section.get("attention_factor")
    return Rope(
        theta=theta,
        kind=kind,
        factor=_number(section, "factor", 1.0),
        low_freq_factor=_number(section, "low_freq_factor", 1.0),
        high_freq_factor=_number(section, "high_freq_factor", 4.0),
        original_context=int(
            section.get("original_max_position_embeddings") or config.integer("max_position_embeddings")
        ),
        beta_fast=_number(section, "beta_fast", 32.0),
        beta_slow=_number(section, "beta_slow", 1.0),
        attention_factor=None if attention is None else float(attention),
        truncate=bool(section.get("truncate", True)),
    )


def frequencies(rope: Rope, head_dim: int) -> tuple[list[float], float]:
    """(angle per position of each pair of dimensions, factor on cosines and sines)."""
    half = head_dim // 2
    plain = [rope.theta ** (-2 * i / head_dim) for i in range(half)]
    if rope.kind == "default":
        return plain, 1.0
    if rope.kind == "linear":
        return [f / rope.factor for f in plain], 1.0
    if rope.kind == "llama3":
        return [_llama3(f, rope) for f in plain], 1.0
    return _yarn(plain, rope, head_dim)


def _llama3(frequency: float, rope: Rope) -> float:
    """Slow dimensions are stretched, fast ones kept, those between blended (Llama 3.1)."""
    wavelength = 2 * math.pi / frequency
    low, high = rope.original_context / rope.low_freq_factor, rope.original_context / rope.high_freq_factor
    if wavelength < high:
        return frequency
    if wavelength > low:
        return frequency / rope.factor
    blend = (rope.original_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return (1 - blend) * frequency / rope.factor + blend * frequency


def _yarn(plain: list[float], rope: Rope, head_dim: int) -> tuple[list[float], float]:
    """YaRN (arXiv 2309.00071): a ramp between stretched and kept dimensions."""

    def dimension(rotations: float) -> float:
        return head_dim * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = max(high - low, 0.001)
    kept = [1.0 - min(max((i - low) / span, 0.0), 1.0) for i in range(len(plain))]
    scale = rope.attention_factor
    if scale is None:
        scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return [f / rope.factor * (1 - k) + f * k for f, k in zip(plain, kept, strict=True)], scale


def _number(values: Mapping[str, Any], field: str, default: float) -> float:
    value = values.get(field)
    return default if value is None else float(value)


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; give a folder with a model's config.json") from None
    except ValueError as error:
        raise InputError(f"{file}: must be JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: must hold a JSON object")
    return values
