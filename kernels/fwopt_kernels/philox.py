"""Random numbers that depend on nothing but (seed, position, token): Philox 4x32-10, inside kernels.

Key: the 64 bits of the seed. Counter: (token // 4, low and high half of the position, 0); word `token % 4` is the
token's. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); Triton's `tl.philox` computes the rounds.

A word w becomes an exponential number -log(1 - u), u = (w + 1/2) / 2**32. Races are won by small numbers, so those are
kept as fine as 32 bits allow: below 1/16 by a series, whose next term is 2**-26 of the sum; above from 1 - u, which is
the complement of w. `philox_torch.py` is the same in torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

_UNIT = tl.constexpr(2.0**-32)
_SERIES_BELOW = tl.constexpr(0.0625)


@triton.jit
def words(seed, position, quad):
    """The four words of four tokens each; seed and position int64 scalars, quad = token // 4 int32."""
    nothing = quad * 0
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), (position >> 32).to(tl.uint32)
    return tl.philox(seed, quad, nothing.to(tl.uint32) + low, nothing.to(tl.uint32) + high, nothing)


@triton.jit
def word(seed, position, token):
    """One word each of tokens in any order."""
    a, b, c, d = words(seed, position, token // 4)
    place = token % 4
    return tl.where(place < 2, tl.where(place == 0, a, b), tl.where(place == 2, c, d))


@triton.jit
def words_in_order(seed, position, first, COUNT: tl.constexpr):
    """Words of tokens first..first + COUNT - 1; both numbers divisible by 4."""
    a, b, c, d = words(seed, position, first // 4 + tl.arange(0, COUNT // 4))
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def exponential(w):
    """uint32 -> float32, positive."""
    u = (w.to(tl.float32) + 0.5) * _UNIT
    rest = ((w ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _UNIT
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6))))))
    return tl.where(u < _SERIES_BELOW, series, -tl.log(rest))
