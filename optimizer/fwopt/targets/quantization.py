"""Which scheme a published checkpoint is stored in, and what that means for serving it."""

from __future__ import annotations

import re
from typing import Literal

from fwopt.errors import InputError
from fwopt.spec.candidate import W4A16, Bf16, Fp8, Int8, Mxfp4, Quantization
from fwopt.spec.model import ModelSpec
from fwopt.targets.config import Config

Stored = Literal["fp8_tensor", "fp8_block", "int8_channel", "mxfp4", "int4_group", "int4_experts"]

_EXPERTS = "model.layers.1.mlp.experts.0.down_proj"
_OUTSIDE_EXPERTS = (
    "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.shared_experts.down_proj",
    "model.layers.0.mlp.down_proj",
)
"""One linear layer of each kind, under the names that checkpoints give them."""


def stored_quantization(config: Config) -> tuple[Stored | None, int | None]:
    """Scheme and group size from `quantization_config`, that of the language model where there are several models;
    (None, None) for bf16/fp16 weights."""
    if not config.has("quantization_config"):
        return stored_quantization(config.section("text_config")) if config.has("text_config") else (None, None)
    section = config.section("quantization_config")
    method = section.text("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(section)
    if method == "mxfp4":
        return "mxfp4", None
    if method == "fp8":
        return _fp8(section), None
    if method == "modelopt" and section.text("quant_algo") == "FP8":
        return "fp8_tensor", None
    if method in ("awq", "gptq") and section.integer("bits") == 4:
        return "int4_group", section.integer("group_size")
    raise section.error("quant_method", "this checkpoint scheme is not modelled (fp8, mxfp4, awq, gptq 4-bit are)")


def _fp8(section: Config) -> Stored:
    block = section.items("weight_block_size", int, 2)
    if block not in (None, [128, 128]):
        raise section.error("weight_block_size", "only 128x128 blocks are modelled")
    return "fp8_block" if block else "fp8_tensor"


def _compressed_tensors(section: Config) -> tuple[Stored, int | None]:
    weights = section.section("config_groups").section("group_0").section("weights")
    kind, bits, strategy = weights.text("type"), weights.integer("num_bits"), weights.text("strategy")
    if (kind, bits) == ("float", 8):
        return ("fp8_block" if strategy == "block" else "fp8_tensor"), None
    if (kind, bits) == ("int", 8):
        return "int8_channel", None
    if (kind, bits, strategy) == ("int", 4, "group"):
        return _int4_scope(section), weights.integer("group_size")
    raise InputError(f"{weights.label}: {bits}-bit {kind} weights ({strategy}) are not modelled")


def _int4_scope(section: Config) -> Stored:
    """Which linear layers `ignore` leaves in 4 bits: all, or routed experts alone. An entry is a module's name, or a
    regular expression from its start after `re:` (as compressed-tensors matches them)."""
    ignored = section.items("ignore", str) or []
    left = [not any(_names(entry, module) for entry in ignored) for module in _OUTSIDE_EXPERTS]
    if any(_names(entry, _EXPERTS) for entry in ignored) or any(left) != all(left):
        raise InputError(f"{section.label}: ignore: 4-bit weights in some layers but not in others are not modelled")
    return "int4_group" if all(left) else "int4_experts"


def _names(entry: str, module: str) -> bool:
    try:
        return bool(re.match(entry[3:], module)) if entry.startswith("re:") else entry == module
    except re.error:
        raise InputError(f"quantization_config: ignore: '{entry}' is not a regular expression") from None


def native_quantization(model: ModelSpec) -> Quantization:
    """The scheme a model is served in when nothing is converted: that of its published weights."""
    match model.checkpoint_quantization:
        case None:
            return Bf16()
        case "fp8_tensor":
            return Fp8(scale="tensor")
        case "fp8_block":
            return Fp8(scale="block")
        case "int8_channel":
            return Int8()
        case "mxfp4":
            return Mxfp4()
        case "int4_group":
            return W4A16(group_size=model.checkpoint_group_size or 128)
        case "int4_experts":
            return W4A16(group_size=model.checkpoint_group_size or 128, scope="experts")
