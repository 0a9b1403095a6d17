"""MXFP4 numbers (OCP Microscaling Formats 1.0) as checkpoints store them. Torch alone.

Two e2m1 codes a byte, that of the smaller K in its low half (sign, two bits of exponent, one of mantissa); for each 32
of them a byte, the exponent of their scale plus 127; 255 is NaN. So does `mxfp4-pack-quantized` store them
(`weight_packed`, `weight_scale`; read in compressed-tensors 0.20.0, Apache-2.0), and so do gpt-oss's checkpoints
(`_blocks`, `_scales`; read in transformers 5.24.0, Apache-2.0).

Kernels take a code's bits for bfloat16's as they are, which makes them 2**-126 of its value. So the scale that they
multiply by makes up for this but for 2**SHIFT, by which they multiply their sums: with that room no scale below 2**34
overflows, and none from 2**-93 on makes a weight subnormal.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Values of K that share a scale."""
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the codes 0 to 7; 8 to 15 are the same below zero."""
SHIFT = 32
BIAS = 126 - SHIFT
"""A scale's byte and this are the exponent of the bfloat16 number that kernels multiply by."""
LARGEST = 254 - BIAS


def require_scales(scales: Tensor) -> None:
    """Refuse those that kernels cannot multiply by. Waits for the device."""
    largest = int(scales.max()) if scales.numel() else 0
    if largest > LARGEST:
        raise ValueError(f"MXFP4 scales must be at most {LARGEST} (2**33; 255 is NaN); got {largest}")


def dense(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., K / 2) and (..., K / 32) uint8 -> (..., K), by way of float32: exact where `dtype` has the number."""
    wide = torch.promote_types(dtype, torch.float32)
    table = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], dtype=wide, device=codes.device)
    values = table[torch.stack((codes & 15, codes >> 4), -1).int()].reshape(*scales.shape, GROUP)
    numbers: Tensor = values * scales.view(torch.float8_e8m0fnu).to(wide).unsqueeze(-1)
    return numbers.flatten(-2).to(dtype)
