"""Experts' weights as vLLM's Triton kernels read them. Torch alone.

`bf16`: (experts, outputs, inputs). `fp8-block`: e4m3 with a float32 scale per 128 x 128 block. `w4a16`: two 4-bit
numbers a byte along the inputs, the first one low, meaning `number - 8`, with a bfloat16 scale per output and group of
inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128


@dataclass(frozen=True)
class Matrix:
    """The weights of all experts, (experts, outputs, inputs) in their format."""

    format: str
    values: Tensor
    scale: Tensor | None

    @property
    def outputs(self) -> int:
        return int(self.values.shape[1])

    @property
    def inputs(self) -> int:
        return int(self.values.shape[2]) * (2 if self.format == "w4a16" else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        if self.format == "w4a16":
            assert self.scale is not None
            return self.inputs // int(self.scale.shape[2])
        return BLOCK

    def dense(self, expert: int, dtype: torch.dtype) -> Tensor:
        """One expert's weights, (outputs, inputs)."""
        values = self.values[expert]
        if self.format == "w4a16":
            values = torch.stack([values & 0xF, values >> 4], -1).flatten(1).to(dtype) - 8
        if self.scale is None:
            return values.to(dtype)
        scale = self.scale[expert].to(dtype).repeat_interleave(self.group, 1)[:, : self.inputs]
        if self.format == "fp8-block":
            scale = scale.repeat_interleave(BLOCK, 0)[: self.outputs]
        wide: Tensor = values.to(torch.float32).to(dtype) * scale
        return wide


def matrix_bytes(format: str, outputs: int, inputs: int) -> int:
    """Of one expert, with its scales (`w4a16`: in groups of 128)."""
    if format == "bf16":
        return 2 * outputs * inputs
    if format == "fp8-block":
        return outputs * inputs + 4 * -(-outputs // BLOCK) * -(-inputs // BLOCK)
    return outputs * inputs // 2 + 2 * outputs * -(-inputs // 128)
