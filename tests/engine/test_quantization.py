"""Weight formats: close to the weights they were made from, and never better than arithmetic allows."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fwopt.engine.checkpoint import Safetensors
from fwopt.engine.linear import make_linear
from fwopt.errors import InputError
from fwopt.spec.candidate import W4A16, Bf16, Fp8, Int8

CPU = torch.device("cpu")


def product(scheme, dtype: torch.dtype, bias: bool = True, rows: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the layer computes, the exact product)."""
    torch.manual_seed(1)
    weight, x = torch.randn(96, 128, dtype=torch.float64) / 11, torch.randn(rows, 128, dtype=torch.float64)
    added = torch.randn(96, dtype=torch.float64) if bias else None
    layer = make_linear(weight.to(dtype), None if added is None else added.to(dtype), scheme, CPU)
    exact = torch.nn.functional.linear(x, weight, added)
    return layer(x.to(dtype)).double(), exact


@pytest.mark.parametrize("rows", [1, 9, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scheme", "error"),
    [(Bf16(), 0.01), (Int8(), 0.02), (W4A16(group_size=32), 0.12), (W4A16(group_size=64), 0.14), (Fp8(), 0.05)],
)
def test_error_of_each_scheme(scheme, error, dtype, rows):
    ours, exact = product(scheme, dtype, rows=rows)
    assert ((ours - exact).norm() / exact.norm()).item() < error


def test_int8_weights_survive_a_second_conversion():
    """A matrix of whole numbers times a row's scale is stored exactly."""
    torch.manual_seed(2)
    levels = torch.randint(-127, 128, (16, 64)).float()
    levels[:, 0] = 127
    weight = levels * torch.rand(16, 1)
    layer = make_linear(weight, None, Int8(), CPU)
    x = torch.eye(64)
    torch.testing.assert_close(layer(x), weight.t(), rtol=1e-5, atol=1e-6)


def test_block_fp8_is_refused():
    with pytest.raises(InputError, match="one scale a tensor"):
        make_linear(torch.zeros(16, 16), None, Fp8(scale="block"), CPU)


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="divides 96, got 64"):
        make_linear(torch.zeros(16, 96), None, W4A16(group_size=64), CPU)


def rounded(values: torch.Tensor, largest: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(whole numbers, one scale a group along the row)."""
    grouped = values.view(len(values), -1, group)
    scale = grouped.abs().amax(dim=2, keepdim=True) / largest
    return (grouped / scale).round(), scale.squeeze(2)


def as_mxfp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """By compressed-tensors itself; scales are powers of two."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8")
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    scale = torch.exp2((weight.view(len(weight), -1, 32).abs().amax(dim=2) / 6).log2().ceil())
    compressor = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
    packed = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    return {f"a.{name}": tensor.contiguous() for name, tensor in packed.items()}


@pytest.mark.parametrize("stored", ["int8", "int4", "mxfp4", "fp8", "fp8-block"])
def test_quantized_checkpoints_are_read_as_the_numbers_they_stand_for(stored, tmp_path):
    """As llm-compressor (compressed-tensors) and DeepSeek-style FP8 checkpoints store a matrix."""
    torch.manual_seed(3)
    weight = torch.randn(200, 256)
    if stored == "int8":
        levels, scale = rounded(weight, 127, 256)
        tensors = {"a.weight": levels.view(200, 256).to(torch.int8), "a.weight_scale": scale}
    elif stored == "int4":
        levels, scale = rounded(weight, 7, 64)
        nibbles = (levels.view(200, 32, 8) + 8).to(torch.int64) << torch.arange(0, 32, 4)
        packed = nibbles.sum(dim=2)
        packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
        tensors = {"a.weight_packed": packed, "a.weight_scale": scale}
    elif stored == "mxfp4":
        tensors = as_mxfp4(weight)
    elif stored == "fp8":
        scale = weight.abs().max() / 448
        tensors = {"a.weight": (weight / scale).to(torch.float8_e4m3fn), "a.weight_scale": scale.view(1)}
    else:
        scale = torch.rand(2, 2) / 100 + 0.01
        tensors = {
            "a.weight": (weight / scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)).to(
                torch.float8_e4m3fn
            ),
            "a.weight_scale_inv": scale,
        }
    save_file(tensors, tmp_path / "model.safetensors")
    found = Safetensors(tmp_path).tensor("a.weight", (200, 256))
    error = (found - weight).norm() / weight.norm()
    assert error < {"int8": 0.01, "int4": 0.12, "mxfp4": 0.14, "fp8": 0.04, "fp8-block": 0.04}[stored]


def test_packed_numbers_of_another_kind_are_refused(tmp_path):
    """NVFP4 has bytes for codes, too."""
    tensors = as_mxfp4(torch.randn(8, 64))
    tensors["a.weight_scale"] = tensors["a.weight_scale"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"a\.weight is packed in torch\.uint8 with scales in torch\.float8_e4m3fn"):
        Safetensors(tmp_path).tensor("a.weight", (8, 64))
