"""Linear layers on `fwopt_kernels`."""

from __future__ import annotations

import torch
from torch import Tensor

from fwopt.engine.linear import int4_levels
from fwopt_kernels.w4_format import pack, repack
from fwopt_kernels.w4a16 import w4a16


class KernelInt4:
    """4-bit weights in groups along k, symmetric; activations in bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: int) -> None:
        levels, scale = int4_levels(weight, group)
        self.weights = repack(pack((levels + 8).flatten(1), scale.squeeze(2).to(torch.bfloat16), None))
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.weights.columns)
        w4a16(x, self.weights, out)
        return out if self.bias is None else out.add_(self.bias)
