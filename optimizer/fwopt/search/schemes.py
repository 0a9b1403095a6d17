"""Which weight precisions one checkpoint can be served in, and what each needs from the user."""

from __future__ import annotations

from typing import get_args

from fwopt.errors import InputError, UnknownNameError
from fwopt.spec.candidate import W4A16, Bf16, Fp8, Gguf, Int8, Mxfp4, Quantization
from fwopt.spec.candidate import scheme_name as scheme_name
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec
from fwopt.targets.quantization import native_quantization

NAMES: dict[str, Quantization] = {
    "bf16": Bf16(),
    "fp8": Fp8(),
    "fp8-block": Fp8(scale="block"),
    "int8": Int8(),
    "w4a16": W4A16(),
    "w4a16-experts": W4A16(group_size=32, scope="experts"),
    "mxfp4": Mxfp4(),
}
"""Names used in fwopt.yaml, in the order in which they are searched."""

_CONVERTED: dict[str, str] = {
    "int8": "a w8a8 INT8 checkpoint (for example made with llm-compressor); vLLM does not quantize to it on load",
    "w4a16": "a 4-bit checkpoint (GPTQ, AWQ or compressed-tensors); vLLM does not quantize to it on load",
}

_PUBLISHED_ONLY = {"mxfp4": "MXFP4 weights", "w4a16-experts": "4-bit experts"}
"""Schemes that only a checkpoint published so can be served in."""


GGUF_NAMES: dict[str, Quantization] = {
    scheme_name(gguf): gguf for gguf in (Gguf(type=name) for name in get_args(Gguf.model_fields["type"].annotation))
}
"""llama.cpp's formats, least compressed first."""


def parse_scheme(name: str) -> Quantization:
    known = NAMES | GGUF_NAMES
    if name not in known:
        raise UnknownNameError("quantization", name, known)
    return known[name]


def servable(model: ModelSpec, device: DeviceSpec) -> tuple[Quantization, ...]:
    """Precisions worth searching: only the native one for a quantized checkpoint; for bf16 also what vLLM makes
    on load (fp8 per tensor, fp8 in 128x128 blocks) and what a converted checkpoint allows (int8, w4a16)."""
    if model.checkpoint_quantization is not None:
        return (native_quantization(model),)
    found: list[Quantization] = [Bf16()]
    if device.fp8_flops:
        found += [Fp8(), Fp8(scale="block")]
    if device.int8_ops:
        found.append(Int8())
    return (*found, W4A16())


def check_servable(quantization: Quantization, model: ModelSpec, device: DeviceSpec) -> None:
    """Refuse a precision that the user asked for and that cannot be served."""
    name, stored = scheme_name(quantization), model.checkpoint_quantization
    if stored is not None and name != scheme_name(native_quantization(model)):
        raise InputError(
            f"quantization {name}: the checkpoint of {model.name} is stored as {stored} and can only be served so; "
            f"use '{scheme_name(native_quantization(model))}'"
        )
    if name in _PUBLISHED_ONLY and stored is None:
        raise InputError(f"quantization {name}: the checkpoint of {model.name} holds no {_PUBLISHED_ONLY[name]}")
    if quantization.kind == "fp8" and not device.fp8_flops:
        raise InputError(f"quantization {name}: {device.name} has no FP8 arithmetic")
    if name == "int8" and not device.int8_ops:
        raise InputError(f"quantization int8: {device.name} has no INT8 arithmetic")


def needs_checkpoint(quantization: Quantization, model: ModelSpec) -> str | None:
    """What must exist before the engine can start, or None when it serves the published weights."""
    if quantization.kind == "gguf":
        return f"a GGUF file of {model.name} in {quantization.type} (convert_hf_to_gguf.py, then llama-quantize)"
    return None if model.checkpoint_quantization is not None else _CONVERTED.get(scheme_name(quantization))
