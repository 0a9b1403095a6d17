"""The experts of a layer in the numbers of their scheme, in memory as in arithmetic, as `fwopt_kernels` reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from fwopt.engine.linear import FP8, FP8_MAX, int4_levels, round_weight
from fwopt.spec.candidate import Quantization
from fwopt_kernels.moe_weights import BLOCK, Matrix
from fwopt_kernels.w4_format import GROUPS


def plain(weights: Tensor) -> Matrix:
    return Matrix("bf16", weights, None)


class Filling:
    """One matrix a layer, filled expert by expert: at no time are all of them there unquantized."""

    def __init__(
        self, scheme: Quantization, experts: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(experts, *shape, dtype=dtype, device=device)

        self._scheme = scheme
        match scheme.kind:
            case "w4a16" if scheme.group_size in GROUPS:
                packed = empty(outputs, inputs // 2, dtype=torch.uint8)
                self.matrix = Matrix("w4a16", packed, empty(outputs, inputs // scheme.group_size))
            case "fp8" if scheme.scale == "tensor":
                scale = empty(-(-outputs // BLOCK), -(-inputs // BLOCK), dtype=torch.float32)
                self.matrix = Matrix("fp8-block", empty(outputs, inputs, dtype=FP8), scale)
            case _:
                self.matrix = plain(empty(outputs, inputs))

    def put(self, expert: int, weight: Tensor) -> None:
        """`weight` (outputs, inputs)."""
        values, scale = self.matrix.values[expert], self.matrix.scale
        if scale is None:
            values.copy_(round_weight(weight, self._scheme))
        elif self.matrix.format == "w4a16":
            assert self._scheme.kind == "w4a16"
            levels, steps = int4_levels(weight, self._scheme.group_size)
            even, odd = (levels + 8).view(len(weight), -1, 2).to(torch.uint8).unbind(2)
            values.copy_(even | (odd << 4))
            scale[expert].copy_(steps.squeeze(2))
        else:
            step = weight.abs().amax().float().clamp_(min=1e-8) / FP8_MAX
            values.copy_((weight.float() / step).to(FP8))
            scale[expert].fill_(step)
