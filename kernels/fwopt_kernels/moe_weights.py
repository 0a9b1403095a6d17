"""Experts' weights as vLLM's Triton kernels read them. Torch alone.

`bf16`: (experts, outputs, inputs). `fp8-block`: e4m3 with a float32 scale per 128 x 128 block. `w4a16`: two 4-bit
numbers a byte along the inputs, the first one low, meaning `number - 8`, with a bfloat16 scale per output and group of
inputs. `mxfp4`: for fwopt's kernel alone, `w4_format`'s tiles, made of what a checkpoint stores by `tiled`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fwopt_kernels import mxfp4
from fwopt_kernels.w4_format import StoredW4, W4Weights, repack, unpacked

BLOCK = 128


@dataclass(frozen=True)
class Matrix:
    """The weights of all experts, (experts, outputs, inputs) in their format."""

    format: str
    values: Tensor
    scale: Tensor | None
    size: tuple[int, int] | None = None
    """Outputs and inputs of `mxfp4`, whose tiles are padded."""

    @property
    def outputs(self) -> int:
        return int(self.values.shape[1]) if self.size is None else self.size[0]

    @property
    def inputs(self) -> int:
        if self.size is not None:
            return self.size[1]
        return int(self.values.shape[2]) * (2 if self.format == "w4a16" else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        if self.format == "w4a16":
            assert self.scale is not None
            return self.inputs // int(self.scale.shape[2])
        return mxfp4.GROUP if self.format == "mxfp4" else BLOCK

    def dense(self, expert: int, dtype: torch.dtype) -> Tensor:
        """One expert's weights, (outputs, inputs)."""
        values = self.values[expert]
        if self.format == "mxfp4":
            assert self.scale is not None
            tiles = W4Weights(values, self.scale[expert], None, self.outputs, self.inputs, mxfp4.GROUP, True)
            return unpacked(tiles, dtype)
        if self.format == "w4a16":
            values = torch.stack([values & 0xF, values >> 4], -1).flatten(1).to(dtype) - 8
        if self.scale is None:
            return values.to(dtype)
        scale = self.scale[expert].to(dtype).repeat_interleave(self.group, 1)[:, : self.inputs]
        if self.format == "fp8-block":
            scale = scale.repeat_interleave(BLOCK, 0)[: self.outputs]
        wide: Tensor = values.to(torch.float32).to(dtype) * scale
        return wide


def tiled(codes: Tensor, scales: Tensor) -> Matrix:
    """`mxfp4` of codes (experts, outputs, inputs / 2) and scales (experts, outputs, inputs / 32) as `mxfp4.py` says."""
    parts = [repack(StoredW4(codes[e], scales[e], None)) for e in range(len(codes))]
    size = int(codes.shape[1]), 2 * int(codes.shape[2])
    return Matrix("mxfp4", torch.stack([p.codes for p in parts]), torch.stack([p.scales for p in parts]), size)


def matrix_bytes(format: str, outputs: int, inputs: int) -> int:
    """Of one expert, with its scales (`w4a16`: in groups of 128)."""
    if format == "bf16":
        return 2 * outputs * inputs
    if format == "fp8-block":
        return outputs * inputs + 4 * -(-outputs // BLOCK) * -(-inputs // BLOCK)
    if format == "mxfp4":
        return outputs * inputs // 2 + outputs * inputs // mxfp4.GROUP
    return outputs * inputs // 2 + 2 * outputs * -(-inputs // 128)
