"""Numbers as a scheme stores them. Levels and scales are those of compressed-tensors, the library behind the
checkpoints that vLLM loads; the product of level and scale is taken in float32, as kernels accumulate."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fwopt.errors import InputError
from fwopt.quality.schemes import Cache
from fwopt.spec.base import canonical_json


def library_version() -> str:
    """Of compressed-tensors; its absence is an error that says what to install."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("compressed-tensors")
    except PackageNotFoundError:
        raise InputError("`fwopt quality` needs compressed-tensors; pip install 'fwopt[quality]'") from None


def arguments(fields: dict[str, Any]) -> Any:
    """compressed-tensors' QuantizationArgs."""
    return _arguments(canonical_json(fields))


@cache
def _arguments(fields: str) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs.model_validate_json(fields)


def extremes(weight: Tensor, fields: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Least and greatest value under each scale of a matrix (rows, columns)."""
    match fields["strategy"]:
        case "tensor":
            low, high = torch.aminmax(weight)
            return low, high
        case "channel":
            return weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
        case "group":
            groups = weight.reshape(len(weight), -1, fields["group_size"])
            return groups.amin(dim=2), groups.amax(dim=2)
        case "block":
            rows, columns = fields["block_structure"]
            padding = (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows)
            padded = torch.nn.functional.pad(weight, padding)
            blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
            return blocks.amin(dim=(1, 3)), blocks.amax(dim=(1, 3))
    raise AssertionError(fields)


def scales(weight: Tensor, fields: dict[str, Any]) -> Tensor:
    """Of a matrix (rows, columns), in its own dtype."""
    from compressed_tensors.quantization.utils import calculate_qparams

    found: Tensor = calculate_qparams(*extremes(weight, fields), arguments(fields))[0]
    return found


def round_weight(weight: Tensor, fields: dict[str, Any], scale: Tensor | None = None) -> Tensor:
    """Matrix (rows, columns) as stored and read back, float32. `scale`: given instead of the weight's own."""
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    args = arguments(fields)
    scale = scales(weight, fields) if scale is None else scale
    zero = torch.zeros_like(scale)
    levels = quantize(weight, scale, zero, args)
    if fields["strategy"] in ("tensor", "channel"):
        product: Tensor = levels.float() * scale.float()
        return product
    found: Tensor = dequantize(levels.float(), scale.float(), args=args, dtype=torch.float32)
    return found


def round_activations(x: Tensor, fields: dict[str, Any]) -> Tensor:
    """(…, columns) with scales found as they come, float32.

    A token's int8 scale is its greatest magnitude / 127: vLLM's kernels find it, not compressed-tensors, whose own
    would be / 127.5."""
    if fields["type"] == "int" and fields["strategy"] == "token":
        top = 2 ** (fields["num_bits"] - 1) - 1
        wide = x.float()
        steps = (wide.abs().amax(dim=-1, keepdim=True) / top).clamp(min=torch.finfo(torch.float32).tiny)
        rounded: Tensor = (wide / steps).round().clamp(-top - 1, top) * steps
        return rounded
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    args = arguments(fields)
    rows = x.reshape(1, -1, x.shape[-1]).float()  # three dimensions: with two, a scale for all tokens would be found
    scale, zero = compute_dynamic_scales_and_zp(rows, args, module=None)
    found: Tensor = fake_quantize(rows, scale, zero, args)
    return found.view(x.shape)


def round_kv(x: Tensor, kept: Cache) -> Tensor:
    """Keys or values (…, tokens, head size), or heads before tokens, as a cache gives them back.

    e4m3 with scale 1, as vLLM stores them without calibrated scales; int8 as its `int8_per_token_head`: a head's
    greatest magnitude / 127, halves away from zero."""
    if kept == "int8":
        wide = x.float()
        steps = (wide.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-6)
        levels = (wide * (1 / steps)).abs().add(0.5).floor().clamp(max=127) * wide.sign()
        return (levels * steps).to(x.dtype)
    limit = torch.finfo(torch.float8_e4m3fn).max
    return x.clamp(-limit, limit).to(torch.float8_e4m3fn).to(x.dtype)
