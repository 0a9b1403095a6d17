"""The last kernel of `sampling`: an exact threshold by bisection, then the race among what it keeps."""

from __future__ import annotations

import triton
import triton.language as tl

from fwopt_kernels.philox import word
from fwopt_kernels.sampling_kernels import (
    FINENESS,
    GREEDY,
    LAST,
    LISTED,
    UNITS,
    alive,
    depth_of,
    floor_of,
    largest_of,
    logits_at,
    merged,
    raced,
    restricts,
    winner,
)


@triton.jit
def _ordered(x):
    """float32 -> int64 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _entry(logits, listed, at, count, whole):
    """Logits of a row's tokens: its list, or all of the row."""
    of_row, of_list = tl.where(whole, count, 0), tl.where(whole, 0, count)
    return tl.maximum(logits_at(logits, at, at < of_row), tl.load(listed + at, mask=at < of_list, other=float("-inf")))


@triton.jit
def _above(logits, listed, count, whole, largest, heat, floor, threshold, BLOCK: tl.constexpr):
    """Number and mass of the tokens at or above a threshold."""
    number, mass = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
    for start in range(0, count, BLOCK):
        x = _entry(logits, listed, start + tl.arange(0, BLOCK), count, whole)
        depth = depth_of(x, largest, heat)
        kept = alive(x, depth, floor) & (_ordered(x) >= threshold)
        number += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp(-depth) * UNITS, 0.0).to(tl.int64)
    return tl.sum(number, 0), tl.sum(mass, 0)


@triton.jit
def _threshold(
    logits, listed, count, whole, largest, heat, floor, low, k, p, mass, vocabulary, BLOCK: tl.constexpr,
):  # fmt: skip
    """The highest logit, as an ordered integer, from which on there are k tokens (step 0) and, of their mass, a share p
    (step 1). `low`: below all tokens; `mass`: of the whole row. A step ends early where one token lies between the
    bounds."""
    number = count + 2  # more than there are: top-k does not end before the mass of what it keeps is known
    for step in range(2):
        goal = k.to(tl.int64)
        wanted = (k > 0) & (k < vocabulary)
        if step == 1:
            goal = tl.maximum(tl.ceil(mass.to(tl.float64) * p.to(tl.float64)), 1.0).to(tl.int64)
            wanted = p < 1.0
        high, beyond = _ordered(largest), number * 0
        while wanted & (low < high) & (number - beyond > 1):
            middle = low + (high - low + 1) // 2
            some, weight = _above(logits, listed, count, whole, largest, heat, floor, middle, BLOCK)
            reached = tl.where(step == 1, weight, some.to(tl.int64)) >= goal
            low, high = tl.where(reached, middle, low), tl.where(reached, high, middle - 1)
            number, mass = tl.where(reached, some, number), tl.where(reached, weight, mass)
            beyond = tl.where(reached, beyond, some)
    return low


@triton.jit
def draw(
    logits, peaks, peak_tokens, temperature, top_k, top_p, min_p, seed, position, masses, cuts, begins, listed,
    listed_tokens, scores, score_tokens, out, vocabulary, row_stride,
    DRAWN: tl.constexpr, RESTRICTED: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    _, token = merged(peaks, peak_tokens, row, SPLITS)
    if DRAWN:
        heat = tl.load(temperature + row)
        restricted = False
        if RESTRICTED:
            restricted = restricts(top_k, top_p, row, vocabulary)
        if (heat >= GREEDY) & restricted:
            deepest = tl.load(cuts + row)
            whole = deepest < 0
            count = tl.where(whole, vocabulary, tl.load(begins + row * (SPLITS + 1) + SPLITS))
            logits += row * row_stride
            listed += row * LISTED
            listed_tokens += row * LISTED
            largest, floor = largest_of(peaks, row, SPLITS), floor_of(min_p, row)
            mass = tl.sum(tl.load(masses + row * SPLITS + tl.arange(0, SPLITS)), 0)
            end = _ordered(largest - heat * ((deepest + 2.0) / FINENESS))  # a bin below what is listed
            low = tl.where(whole | (deepest == LAST), -2147483648, end)
            threshold = _threshold(
                logits, listed, count, whole, largest, heat, floor, low, tl.load(top_k + row), tl.load(top_p + row),
                mass, vocabulary, BLOCK,
            )  # fmt: skip
            key, place = tl.load(seed + row), tl.load(position + row)
            best, tokens = tl.full([BLOCK], float("-inf"), tl.float32), tl.full([BLOCK], -1, tl.int32)
            for start in range(0, count, BLOCK):
                at = start + tl.arange(0, BLOCK)
                x = _entry(logits, listed, at, count, whole)
                depth = depth_of(x, largest, heat)
                kept = alive(x, depth, floor) & (_ordered(x) >= threshold)
                own = tl.load(listed_tokens + at, mask=at < tl.where(whole, 0, count), other=0)
                own = tl.where(whole, at, own)
                score = raced(depth, word(key, place, own), kept)
                higher = score > best
                best, tokens = tl.where(higher, score, best), tl.where(higher, own, tokens)
            _, token = winner(best, tokens)
        elif heat >= GREEDY:
            _, token = merged(scores, score_tokens, row, SPLITS)
    tl.store(out + row, token.to(tl.int64))
