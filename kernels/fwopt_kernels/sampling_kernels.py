"""Kernels of `sampling`: which tokens of a row may be drawn, and which of them wins the race. Without a sort.

1. `peak`: each part of a row finds its largest logit.
2. `weigh`: each part counts its tokens by how far they lie below the row's largest, and adds up their weights.
3. `cut`: a row's counts, parts in order, bound from above what lies below a depth; the first depth that must hold all
   tokens that top-k or top-p keep is where the row is cut, and says where each part's tokens go in a list.
4. `collect`: each part lists its tokens above the cut; of rows that keep everything, it races them at once.
5. `draw`: a program a row bisects the listed logits, as ordered integers, for the exact threshold, and races the rest.

Weights exp((logit - largest) / temperature) are summed as integers of 2**-40: the order of a sum does not matter, so
neither the split nor the block changes a token. Depths are counted in float32 differences, which never change order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels import tiling
from fwopt_kernels.philox import exponential, words_in_order
from fwopt_kernels.sampling_case import GREEDY_BELOW

LIST = 8192
"""Tokens of a row that a list holds; a row that keeps more is bisected where it lies."""
BINS = 256
LISTED, _BINS, LAST, GREEDY = (tl.constexpr(n) for n in (LIST, BINS, BINS - 1, GREEDY_BELOW))
FINENESS = tl.constexpr(4.0)
"""Bins a nat: 256 of them reach 64 nats deep, the last holds all below."""
UNITS = tl.constexpr(2.0**40)
_SLACK = tl.constexpr(2.0**-16)
"""Far more than float32 sums of `BINS` numbers are off."""
_NONE = tl.constexpr(2**31 - 1)


@triton.jit
def logits_at(logits, at, mask):
    """float32; NaN is minus infinity, and both zeros are one, so that equal numbers are equal integers."""
    x = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def depth_of(x, peak, temperature):
    """Nats below the largest; 0 for all that equal it, be they infinite."""
    return tl.where(x == peak, 0.0, (peak - x) / temperature)


@triton.jit
def floor_of(min_p, row):
    """The depth at which min_p ends."""
    p = tl.load(min_p + row)
    return tl.where(p > 0.0, tl.maximum(-tl.log(tl.where(p > 0.0, p, 1.0)), 0.0), float("inf"))


@triton.jit
def restricts(top_k, top_p, row, vocabulary):
    k = tl.load(top_k + row)
    return ((k > 0) & (k < vocabulary)) | (tl.load(top_p + row) < 1.0)


@triton.jit
def alive(x, depth, floor):
    return (x > float("-inf")) & (depth <= floor)


@triton.jit
def winner(score, token):
    """(largest score, the first token that has it); -1 where no score is above minus infinity."""
    best = tl.max(score, 0)
    first = tl.min(tl.where(score == best, token, _NONE), 0)
    return best, tl.where(best > float("-inf"), first, -1)


@triton.jit
def merged(scores, tokens, row, SPLITS: tl.constexpr):
    """The winner of all parts; parts hold tokens in order."""
    at = row * SPLITS + tl.arange(0, SPLITS)
    return winner(tl.load(scores + at), tl.load(tokens + at))


@triton.jit
def largest_of(peaks, row, SPLITS: tl.constexpr):
    return tl.max(tl.load(peaks + row * SPLITS + tl.arange(0, SPLITS)), 0)


@triton.jit
def raced(depth, w, valid):
    """The exponential race: the largest weight over its own exponential number is drawn with its weight's share."""
    return tl.where(valid, tl.exp(-depth) / exponential(w), float("-inf"))


@triton.jit
def peak(logits, peaks, peak_tokens, vocabulary, row_stride, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    best, token = tl.full([BLOCK], float("-inf"), tl.float32), tl.full([BLOCK], -1, tl.int32)
    first, last = tiling.blocks(vocabulary, BLOCK, SPLITS)
    for block in range(first, last):
        at = block * BLOCK + tl.arange(0, BLOCK)
        x = logits_at(logits, at, at < vocabulary)
        higher = x > best
        best, token = tl.where(higher, x, best), tl.where(higher, at, token)
    score, at_score = winner(best, token)
    part = row * SPLITS + tl.program_id(1)
    tl.store(peaks + part, score)
    tl.store(peak_tokens + part, at_score)


@triton.jit
def weigh(
    logits, peaks, temperature, top_k, top_p, min_p, counts, masses, vocabulary, row_stride,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """counts (rows, parts, BINS) int32, masses (rows, parts) int64 in units of 2**-40."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if (heat < GREEDY) | (restricts(top_k, top_p, row, vocabulary) == 0):
        return
    logits += row * row_stride
    largest, floor = largest_of(peaks, row, SPLITS), floor_of(min_p, row)
    count, mass = tl.zeros([_BINS], tl.int32), tl.zeros([BLOCK], tl.int64)
    first, last = tiling.blocks(vocabulary, BLOCK, SPLITS)
    for block in range(first, last):
        at = block * BLOCK + tl.arange(0, BLOCK)
        x = logits_at(logits, at, at < vocabulary)
        depth = depth_of(x, largest, heat)
        valid = alive(x, depth, floor)
        bin = tl.where(valid, tl.minimum(depth * FINENESS, LAST * 1.0), 0.0).to(tl.int32)
        count += tl.histogram(bin, _BINS, mask=valid)
        mass += tl.where(valid, tl.exp(-depth) * UNITS, 0.0).to(tl.int64)
    part = row * SPLITS + tl.program_id(1)
    tl.store(counts + part * _BINS + tl.arange(0, _BINS), count)
    tl.store(masses + part, tl.sum(mass, 0))


@triton.jit
def cut(temperature, top_k, top_p, counts, masses, cuts, begins, vocabulary, SPLITS: tl.constexpr):
    """cuts (rows,): the deepest bin that is listed, -1 where a list would be too short; begins (rows, parts + 1)."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if (heat < GREEDY) | (restricts(top_k, top_p, row, vocabulary) == 0):
        return
    bin = tl.arange(0, _BINS)
    counts += row * SPLITS * _BINS + bin
    count = tl.zeros([_BINS], tl.int32)
    for part in range(SPLITS):
        count += tl.load(counts + part * _BINS)
    k = tl.load(top_k + row)
    if (k > 0) & (k < vocabulary):
        short = tl.cumsum(count, 0) < k
    else:
        mass = tl.sum(tl.load(masses + row * SPLITS + tl.arange(0, SPLITS)), 0).to(tl.float32) / UNITS
        most = count.to(tl.float32) * tl.exp(bin.to(tl.float32) / -FINENESS)  # that the tokens of a bin can weigh
        below = tl.sum(most, 0) - tl.cumsum(most, 0)
        short = below + tl.sum(most, 0) * _SLACK > (1.0 - tl.load(top_p + row)) * mass
    deepest = tl.minimum(tl.sum(short.to(tl.int32), 0), LAST)
    begin = tl.sum(tl.where(bin <= deepest, count, 0), 0)
    tl.store(cuts + row, tl.where(begin <= LISTED, deepest, -1))
    begins += row * (SPLITS + 1)
    begin = 0
    for part in range(SPLITS):
        tl.store(begins + part, begin)
        begin += tl.sum(tl.where(bin <= deepest, tl.load(counts + part * _BINS), 0), 0)
    tl.store(begins + SPLITS, begin)


@triton.jit
def collect(
    logits, peaks, temperature, top_k, top_p, min_p, seed, position, cuts, begins, listed, listed_tokens, scores,
    score_tokens, vocabulary, row_stride, RESTRICTED: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if heat < GREEDY:
        return
    logits += row * row_stride
    largest, floor = largest_of(peaks, row, SPLITS), floor_of(min_p, row)
    first, last = tiling.blocks(vocabulary, BLOCK, SPLITS)
    restricted = False
    if RESTRICTED:
        restricted = restricts(top_k, top_p, row, vocabulary)
    if restricted:
        deepest = tl.load(cuts + row)
        begin = tl.load(begins + row * (SPLITS + 1) + tl.program_id(1))
        if deepest >= 0:
            for block in range(first, last):
                at = block * BLOCK + tl.arange(0, BLOCK)
                x = logits_at(logits, at, at < vocabulary)
                depth = depth_of(x, largest, heat)
                above = tl.minimum(depth * FINENESS, LAST * 1.0) < deepest + 1
                above = (alive(x, depth, floor) & above).to(tl.int32)
                found = tl.sum(above, 0)
                if found > 0:
                    to = row * LISTED + begin + tl.cumsum(above, 0) - 1
                    tl.store(listed + to, x, mask=above > 0)
                    tl.store(listed_tokens + to, at, mask=above > 0)
                    begin += found
    else:
        best, token = tl.full([BLOCK], float("-inf"), tl.float32), tl.full([BLOCK], -1, tl.int32)
        key, place = tl.load(seed + row), tl.load(position + row)
        for block in range(first, last):
            at = block * BLOCK + tl.arange(0, BLOCK)
            x = logits_at(logits, at, at < vocabulary)
            depth = depth_of(x, largest, heat)
            score = raced(depth, words_in_order(key, place, block * BLOCK, BLOCK), alive(x, depth, floor))
            higher = score > best
            best, token = tl.where(higher, score, best), tl.where(higher, at, token)
        score, at_score = winner(best, token)
        part = row * SPLITS + tl.program_id(1)
        tl.store(scores + part, score)
        tl.store(score_tokens + part, at_score)
