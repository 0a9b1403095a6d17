"""Weight formats: close to the weights they were made from, and never better than arithmetic allows."""

from __future__ import annotations

import pytest
import torch

from fwopt.engine.checkpoint import mxfp4_tensor
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


def test_mxfp4_numbers():
    """Low nibble first; the scale is a power of two with bias 127."""
    blocks = torch.zeros(1, 1, 16, dtype=torch.uint8)
    blocks[0, 0, :4] = torch.tensor([0x10, 0x72, 0xF9, 0x53])
    scales = torch.tensor([[128]], dtype=torch.uint8)
    expected = [0.0, 1.0, 2.0, 12.0, -1.0, -12.0, 3.0, 6.0]
    assert mxfp4_tensor(blocks, scales)[0, :8].tolist() == expected
