"""The random numbers of `philox.py` in torch, without Triton."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
"""Both from the paper's reference implementation."""


def words_torch(seed: Tensor, position: Tensor, tokens: int) -> Tensor:
    """(rows, tokens) int64 in 0..2**32 - 1; seed and position (rows,) int64."""
    quads = torch.arange(-(-tokens // 4), device=seed.device)
    zero = torch.zeros(len(seed), len(quads), dtype=torch.int64, device=seed.device)
    k0, k1 = ((seed >> shift & _MASK)[:, None] for shift in (0, 32))
    c0, c1, c2, c3 = (zero + quads, *(zero + (position >> shift & _MASK)[:, None] for shift in (0, 32)), zero)
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # modulo 2**64, of which all bits are right
        c0, c1, c2, c3 = second >> 32 & _MASK ^ c1 ^ k0, second & _MASK, first >> 32 & _MASK ^ c3 ^ k1, first & _MASK
        k0, k1 = (k + step & _MASK for k, step in zip((k0, k1), _WEYL, strict=True))
    return torch.stack((c0, c1, c2, c3), 2).flatten(1)[:, :tokens]


def exponential_torch(w: Tensor, dtype: torch.dtype) -> Tensor:
    """The number itself, rounded to `dtype` only at the end."""
    return -torch.log1p(-(w.double() + 0.5) / 2**32).to(dtype)
