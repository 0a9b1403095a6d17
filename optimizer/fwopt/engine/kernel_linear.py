"""Linear layers on `fwopt_kernels`."""

from __future__ import annotations

import torch
from torch import Tensor

from fwopt.engine.linear import int4_levels, int8_levels
from fwopt_kernels import row_formats
from fwopt_kernels.choice import Choices
from fwopt_kernels.int8_gemm import int8_gemm
from fwopt_kernels.row_formats import Rows
from fwopt_kernels.scaled_gemm import Scaled
from fwopt_kernels.w4_format import pack, repack
from fwopt_kernels.w4a16 import w4a16


class KernelInt4:
    """4-bit weights in groups along k, symmetric; activations in bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: int, choices: Choices) -> None:
        levels, scale = int4_levels(weight, group)
        self.weights = repack(pack((levels + 8).flatten(1), scale.squeeze(2).to(torch.bfloat16), None))
        self.bias, self._format, self._choices = bias, f"g{group}", choices

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.weights.columns)
        chosen = self._choices.best("w4a16", self._format, m=len(x), n=self.weights.columns, k=self.weights.inner)
        w4a16(x, self.weights, out, variant=chosen)
        return out if self.bias is None else out.add_(self.bias)


class KernelInt8:
    """INT8 weights, one scale a row; bf16 activations quantized token by token, by torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None, choices: Choices) -> None:
        levels, scale = int8_levels(weight)
        self.weight = Scaled(levels.to(torch.int8), scale.squeeze(1))
        self.bias, self._choices = bias, choices

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.new_empty(len(x), 1, dtype=torch.float32)
        rows = Rows("int8-row", torch.empty_like(x, dtype=torch.int8), scale)
        row_formats.write(rows, x)
        n, k = self.weight.values.shape
        out = x.new_empty(len(x), n)
        chosen = self._choices.best("int8_gemm", rows.format, m=len(x), n=n, k=k)
        int8_gemm(Scaled(rows.values, scale.squeeze(1)), self.weight, out, format=rows.format, variant=chosen)
        return out if self.bias is None else out.add_(self.bias)
