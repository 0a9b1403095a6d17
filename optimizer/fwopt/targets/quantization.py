"""Which scheme a published checkpoint is stored in, and what that means for serving it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from fwopt.errors import InputError
from fwopt.spec.candidate import W4A16, Bf16, Fp8, Int8, Mxfp4, Quantization
from fwopt.spec.model import LayerGroup, ModelSpec
from fwopt.targets.config import Config
from fwopt.targets.scope import Scope, exactly, holding, patterned, scope, within

Stored = Literal["fp8_tensor", "fp8_block", "int8_channel", "mxfp4", "int4_group", "int4_experts"]
Layers = tuple[LayerGroup, ...]

_OTHER_FILE = "hf_quant_config.json"
"""Where ModelOpt before 0.31 states the scheme, beside a config.json that says nothing of it."""
_LISTS = ("ignored_layers", "modules_to_not_convert", "exclude_modules", "ignore")
"""Fields that name modules left in 16 bits."""


def stored_quantization(config: Config, layers: Layers, folder: Path) -> tuple[Stored | None, int | None]:
    """Scheme and group size, from where vLLM reads them: `quantization_config`, that of the language model where there
    are several models, `compression_config`, or ModelOpt's file beside config.json; (None, None) for bf16/fp16
    weights."""
    section = _section(config, folder)
    if section is None:
        return None, None
    method = section.text("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(section, layers)
    if method == "mxfp4":
        return "mxfp4", None
    if method == "fp8":
        _require_all(section, layers, "fp8")
        return _fp8(section), None
    if method == "modelopt":
        if section.text("quant_algo") != "FP8":
            raise section.error("quant_algo", "of ModelOpt's schemes FP8 alone is modelled")
        _require_all(section, layers, "fp8")
        return "fp8_tensor", None
    if method == "awq" and section.integer("bits") == 4:
        field = "modules_to_not_convert"
        found = scope(layers, within(section.items(field, str) or ()))
        return _int4(found, section, field), section.integer("group_size")
    if method == "gptq" and section.integer("bits") == 4:
        return _gptq(section, layers), section.integer("group_size")
    raise section.error("quant_method", "this checkpoint scheme is not modelled (fp8, mxfp4, awq, gptq 4-bit are)")


def stored_zero_points(config: Config, folder: Path) -> bool:
    """Whether 4-bit groups have zero points: AWQ's do, asymmetric ones of compressed-tensors, and all of GPTQ's files,
    whose symmetric ones stay in memory under Machete, vLLM's kernel on Hopper."""
    section = _section(config, folder)
    method = section.text("quant_method") if section is not None else None
    if section is None or method not in ("awq", "gptq", "compressed-tensors"):
        return False
    if method == "compressed-tensors":
        groups = section.section("config_groups")
        weights = [groups.section(name).section("weights") for name in groups.fields()]
        return any(w.integer("num_bits") == 4 and not w.flag("symmetric", True) for w in weights)
    return method == "gptq" or section.flag("zero_point", True)


def stored_kv_dtype(config: Config, folder: Path) -> Literal["fp8"] | None:
    """What `--kv-cache-dtype auto` becomes in vLLM 0.32: fp8 where a compressed-tensors or ModelOpt checkpoint brings
    scales for it."""
    section = _section(config, folder)
    if section is None or section.text("quant_method") not in ("compressed-tensors", "modelopt"):
        return None
    if section.has("kv_cache_scheme"):
        scheme = section.section("kv_cache_scheme")
        asked = (scheme.text("type"), scheme.integer("num_bits")) == ("float", 8)
    elif section.has("kv_cache_quant_algo") and section.text("quant_method") == "modelopt":
        asked = (section.text("kv_cache_quant_algo") or "").upper() == "FP8"
    else:
        return None
    if not asked:
        raise InputError(f"{section.label}: of quantized KV caches 8-bit float alone is modelled")
    return "fp8"


def _section(config: Config, folder: Path) -> Config | None:
    text = config.section("text_config") if config.has("text_config") else config
    for field in ("quantization_config", "compression_config"):
        for where in (config, text):
            if where.has(field):
                return _modelopt(where.section(field))
    file = folder / _OTHER_FILE
    if not file.is_file():
        return None
    try:
        stated = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable JSON file: {error}") from None
    return _modelopt(Config({_OTHER_FILE: stated}, config.label).section(_OTHER_FILE))


def _modelopt(section: Config) -> Config:
    """ModelOpt's older form keeps the scheme in a section of its own and names no method."""
    return (
        section.section("quantization").extended({"quant_method": "modelopt"})
        if section.has("quantization")
        else section
    )


def _require_all(section: Config, layers: Layers, what: str) -> None:
    for field in _LISTS:
        if scope(layers, holding(section.items(field, str) or ())) != "all":
            raise _partly(section, field, what)


def _partly(section: Config, field: str, what: str) -> InputError:
    return InputError(f"{section.label}: {field}: {what} weights in some layers but not in others are not modelled")


def _int4(found: Scope, section: Config, field: str) -> Stored:
    if found == "part":
        raise _partly(section, field, "4-bit")
    return "int4_group" if found == "all" else "int4_experts"


def _gptq(section: Config, layers: Layers) -> Stored:
    """`dynamic`: patterns of modules, after `-:` left in 16 bits, else with settings of their own."""
    if section.flag("lm_head", False):
        raise section.error("lm_head", "a quantized LM head is not modelled, must be false")
    rules = section.section("dynamic").fields() if section.has("dynamic") else {}
    label = f"{section.label}: dynamic"
    own = [
        entry.removeprefix("+:")
        for entry, settings in rules.items()
        if not entry.startswith("-:")
        and isinstance(settings, dict)
        and any(settings.get(key, section.integer(key)) != section.integer(key) for key in ("bits", "group_size"))
    ]
    if scope(layers, patterned(own, label)) != "all":
        raise InputError(f"{label}: settings of their own for some layers are not modelled")
    left_out = [entry[2:] for entry in rules if entry.startswith("-:")]
    return _int4(scope(layers, patterned(left_out, label)), section, "dynamic")


def _fp8(section: Config) -> Stored:
    block = section.items("weight_block_size", int, 2)
    if block not in (None, [128, 128]):
        raise section.error("weight_block_size", "only 128x128 blocks are modelled")
    return "fp8_block" if block else "fp8_tensor"


def _compressed_tensors(section: Config, layers: Layers) -> tuple[Stored, int | None]:
    """Several config groups, such as mixtures have, are refused."""
    groups = section.section("config_groups")
    names = list(groups.fields())
    if len(names) != 1:
        raise InputError(f"{groups.label}: one group is modelled, several schemes in one checkpoint are not")
    group = groups.section(names[0])
    weights = group.section("weights")
    kind, bits, strategy = weights.text("type"), weights.integer("num_bits"), weights.text("strategy")
    targets = group.items("targets", str) or ["Linear"]
    found = scope(
        layers,
        exactly(section.items("ignore", str) or (), "quantization_config: ignore"),
        (lambda _: True) if "Linear" in targets else exactly(targets, f"{group.label}: targets"),
    )
    activations = "quantized" if group.has("input_activations") else "16-bit"
    if (bits, activations) in ((4, "quantized"), (8, "16-bit")):
        raise InputError(f"{group.label}: {bits}-bit {kind} weights with {activations} activations are not modelled")
    if (kind, bits, strategy) == ("int", 4, "group"):
        return _int4(found, section, "ignore"), weights.integer("group_size")
    if found != "all":
        raise _partly(section, "ignore" if "Linear" in targets else "config_groups", f"{bits}-bit")
    if (kind, bits, strategy) == ("float", 8, "block"):
        if weights.items("block_structure", int, 2) not in (None, [128, 128]):
            raise weights.error("block_structure", "only 128x128 blocks are modelled")
        return "fp8_block", None
    if bits == 8 and strategy in ("tensor", "channel"):
        return ("fp8_tensor" if kind == "float" else "int8_channel"), None
    raise InputError(f"{weights.label}: {bits}-bit {kind} weights ({strategy}) are not modelled")


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
