"""4-bit weights: as checkpoints store them, and in the order in which the kernel's threads read them.

Stored as compressed-tensors' `pack-quantized` (layout read in its 0.17.0, Apache-2.0): `weight_packed` (N, K / 8)
int32, value k in bits 4 * (k % 8) and up, unsigned; `weight_scale` (N, K / group) bfloat16; where asymmetric,
`weight_zero_point` (N / 8, K / group) int32, packed along N. A weight is `(code - zero) * scale`; without zero points
zero is 8. Or as its `mxfp4-pack-quantized` (`mxfp4.py`): packed (N, K / 2) and scale (N, K / 32), both uint8.

Repacked, 1 KiB holds 16 channels by 128 values of K in the order of a matrix instruction's operand in registers: a
thread's 16-byte loads are its fragment, so nothing is shuffled after the load. A byte's low nibble lies 16 values of K
before its high one. Scales of channels 8 apart, which one thread holds, share a 32-bit word; MXFP4's are a byte each,
`mxfp4.BIAS` added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt_kernels import mxfp4

TILE_N, TILE_K = 16, 128
"""Channels and values of K of one KiB."""
PAD_N = 64
"""Channels are padded to a multiple of this."""
MULTIPLE_K = 32
"""K must be a multiple of this."""
GROUPS = (32, 64, 128)
"""Values of K that may share a scale; or all of them."""
SYMMETRIC = 8
_ORDER = (0, 3, 4, 2, 7, 5, 6, 1, 8)


@dataclass(frozen=True)
class StoredW4:
    """One linear layer's weights as a checkpoint has them."""

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None

    @property
    def inner(self) -> int:
        return 2 * self.packed.shape[1] * self.packed.element_size()

    @property
    def mx(self) -> bool:
        return self.scale.dtype == torch.uint8


@dataclass(frozen=True)
class W4Weights:
    """One linear layer's weights as the kernel reads them."""

    codes: Tensor
    """(N / 16, K / 128, 1024) uint8, N padded to 64 and K to 128."""
    scales: Tensor
    """(groups, N / 2) int32: bfloat16 scales of channels c and c + 8 of every 16 in the low and the high half.
    MXFP4: (groups, N / 4) int32, a byte each, as zero points."""
    zeros: Tensor | None
    """(groups, N / 4) int32: zero points of channels c, c + 8, c + 16, c + 24 of every 32, a byte each."""
    columns: int
    inner: int
    group: int
    """Values of K that share a scale, one of `GROUPS`; 0: all of a channel's."""
    mx: bool
    """MXFP4 instead of whole numbers."""


def pack(codes: Tensor, scale: Tensor, zeros: Tensor | None) -> StoredW4:
    """codes (N, K) and zeros (N, groups) in 0..15; scale (N, groups) bfloat16."""
    return StoredW4(_eights(codes), scale, None if zeros is None else _eights(zeros.T).T.contiguous())


def _eights(codes: Tensor) -> Tensor:
    """(rows, columns) in 0..15 -> (rows, columns / 8) int32, the first in the lowest bits; rows are filled with 0."""
    filled = F.pad(codes.to(torch.int64), (0, -codes.shape[1] % 8)).view(codes.shape[0], -1, 8)
    words = (filled << (4 * torch.arange(8, device=codes.device))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _nibbles(packed: Tensor) -> Tensor:
    """The inverse of `_eights`, as uint8; of bytes likewise."""
    bytes_ = packed.contiguous().view(torch.uint8)
    return torch.stack((bytes_ & 15, bytes_ >> 4), -1).flatten(1)


def dequantized(stored: StoredW4, dtype: torch.dtype) -> Tensor:
    """(N, K) weights as the format defines them."""
    if stored.mx:
        return mxfp4.dense(stored.packed, stored.scale, dtype)
    columns, groups = stored.scale.shape
    zeros = SYMMETRIC if stored.zero_point is None else _zero_points(stored).to(dtype).unsqueeze(-1)
    codes = _nibbles(stored.packed).to(dtype).view(columns, groups, -1)
    return ((codes - zeros) * stored.scale.to(dtype).unsqueeze(-1)).flatten(1)


def _zero_points(stored: StoredW4) -> Tensor:
    assert stored.zero_point is not None
    return _nibbles(stored.zero_point.T)[:, : stored.scale.shape[0]].T


def repack(stored: StoredW4) -> W4Weights:
    """Once, when a checkpoint is loaded."""
    columns, groups = stored.scale.shape
    group = _group(stored)
    grouped = group in GROUPS
    pad_n, pad_k = -columns % PAD_N, -stored.inner % TILE_K
    pad_groups = pad_k // group if grouped else 0

    def padded(scales: Tensor, words: int) -> Tensor:
        """(groups, N / words) int32 of values that lie 8 channels apart."""
        rows = F.pad(scales, (0, pad_groups, 0, pad_n)).T.reshape(groups + pad_groups, -1, words, 8)
        return rows.transpose(2, 3).contiguous().view(torch.int32).flatten(1)

    codes = F.pad(_nibbles(stored.packed), (0, pad_k, 0, pad_n), value=0 if stored.mx else SYMMETRIC)
    scales = padded(stored.scale + mxfp4.BIAS, 4) if stored.mx else padded(stored.scale, 2)
    zeros = None if stored.zero_point is None else padded(_zero_points(stored), 4)
    return W4Weights(_fragments(codes), scales, zeros, columns, stored.inner, group if grouped else 0, stored.mx)


def _group(stored: StoredW4) -> int:
    """Values of K that share a scale; refuses what the kernel does not know."""
    (columns, groups), inner = stored.scale.shape, stored.inner
    group = inner // groups
    if stored.packed.shape[0] != columns or inner % MULTIPLE_K or group * groups != inner:
        raise ValueError(
            f"w4a16 needs K divisible by {MULTIPLE_K} and by the group, and a row of scales a channel; got packed "
            f"{tuple(stored.packed.shape)} and scales {tuple(stored.scale.shape)}"
        )
    if stored.mx:
        if group != mxfp4.GROUP:
            raise ValueError(f"w4a16 needs MXFP4 in groups of {mxfp4.GROUP}; got {group}")
        mxfp4.require_scales(stored.scale)
        return group
    if groups > 1 and group not in GROUPS:
        raise ValueError(f"w4a16 knows groups of 32, 64, 128 and whole channels; got {group}")
    if stored.scale.dtype != torch.bfloat16:
        raise ValueError(f"w4a16 needs bfloat16 scales; got {stored.scale.dtype}")
    return group


def _fragments(codes: Tensor) -> Tensor:
    """(N, K) codes -> KiB tiles; digits of n: tile, 8s, 1s; of k: tile, 64s, 32s, half, 8s, 2s, 1s."""
    rows, inner = codes.shape
    low, high = codes.view(rows // TILE_N, 2, 8, inner // TILE_K, 2, 2, 2, 2, 4, 2).unbind(6)
    return (low | high << 4).permute(_ORDER).reshape(rows // TILE_N, inner // TILE_K, 1024)


def unpacked(weights: W4Weights, dtype: torch.dtype) -> Tensor:
    """(N, K) weights out of the repacked ones: what the torch fallback multiplies with."""
    n_tiles, k_tiles, _ = weights.codes.shape
    inverse = sorted(range(9), key=_ORDER.__getitem__)
    tiles = weights.codes.view(n_tiles, k_tiles, 2, 8, 4, 2, 2, 2, 2).permute(inverse)
    codes = torch.stack([tiles & 15, tiles >> 4], dim=6).reshape(n_tiles * TILE_N, k_tiles * TILE_K)
    groups = weights.scales.shape[0]

    def unpadded(words: Tensor, kind: torch.dtype) -> Tensor:
        """(N, groups)"""
        return words.view(kind).view(groups, -1, 8, 4 // kind.itemsize).transpose(2, 3).reshape(groups, -1).T

    if weights.mx:
        bytes_ = codes[:, ::2] | codes[:, 1::2] << 4
        scales = unpadded(weights.scales, torch.uint8) - mxfp4.BIAS
        return mxfp4.dense(bytes_, scales.contiguous(), dtype)[: weights.columns, : weights.inner]
    scales = unpadded(weights.scales, torch.bfloat16)
    zeros: Tensor | int = SYMMETRIC
    if weights.zeros is not None:
        zeros = unpadded(weights.zeros, torch.uint8).to(dtype).unsqueeze(-1)
    whole = codes.to(dtype).view(codes.shape[0], groups, -1)
    return ((whole - zeros) * scales.to(dtype).unsqueeze(-1)).flatten(1)[: weights.columns, : weights.inner]
