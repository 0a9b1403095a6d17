"""Step times from a candidate's tables, and the tally of where time went."""

from __future__ import annotations

import math

from fwopt.sim.jit import compiled
from fwopt.sim.state import Floats, Sim


@compiled
def cell(points: Floats, x: float) -> int:
    """Index i of the interval [points[i], points[i+1]] that holds x; the outermost ones extend to infinity."""
    low, high = 0, len(points) - 2
    while low < high:
        middle = (low + high + 1) >> 1
        if points[middle] <= x:
            low = middle
        else:
            high = middle - 1
    return low


@compiled
def prefill_time(sim: Sim, past: float, end: float) -> float:
    """Attention seconds of one prompt chunk that extends a context from `past` to `end` tokens."""
    total = 0.0
    before = past * sim.limits[0].over_context
    for length, sign in ((end - past + before, 1.0), (before, -1.0)):
        if length > 0:
            i = cell(sim.prefill_length, length)
            x0, x1 = sim.prefill_length[i], sim.prefill_length[i + 1]
            y0, y1 = sim.prefill_s[i], sim.prefill_s[i + 1]
            total += sign * (y0 + (y1 - y0) * (length - x0) / (x1 - x0))
            if sign > 0:
                where = i
    floor = sim.limits[0].chunk_floor
    if total < floor:
        total = floor
    sim.spent_prefill[where] += total
    return total


@compiled
def decode_line(sim: Sim, batch: int, context: float) -> tuple[int, float, float]:
    """(cell, seconds at `context`, seconds per further token of mean context) of decode attention."""
    j = cell(sim.decode_context, context)
    x0, x1 = sim.decode_context[j], sim.decode_context[j + 1]
    y0, y1 = sim.decode_s[batch, j], sim.decode_s[batch, j + 1]
    slope = (y1 - y0) / (x1 - x0)
    if slope < 0.0:
        slope = 0.0
    if context < x0:
        return j, y0, 0.0
    return j, y0 + slope * (context - x0), slope


@compiled
def tally_decode(sim: Sim, batch: int, j: int, steps: float, context: float, seconds: float) -> None:
    """`steps` steps of one batch attended to `context` tokens in the mean and took `seconds` for it together."""
    sim.attended[batch, j] += steps
    sim.attended_context[batch, j] += steps * context
    sim.spent_decode[batch, j] += seconds


@compiled
def tally_prompts(sim: Sim, r: int) -> None:
    """The step of replica r computes prompt chunks."""
    replica = sim.replica[r]
    chunks, tokens, context = replica.step_chunks, replica.step_tokens, replica.step_context
    octave = 0
    while chunks >> (octave + 1) > 0:
        octave += 1
    i, j = cell(sim.prefill_length, tokens / chunks), cell(sim.prefill_length, context / chunks)
    sim.prompted[0, octave, i, j] += 1.0
    sim.prompted[1, octave, i, j] += chunks
    sim.prompted[2, octave, i, j] += tokens
    sim.prompted[3, octave, i, j] += context


@compiled
def count_gaps(sim: Sim, gap_s: float, count: float) -> None:
    """Add inter-token gaps to the histogram."""
    limits = sim.limits[0]
    i = 0
    if gap_s > 0:
        i = int((math.log(gap_s) - limits.edge0_log) * limits.bins_per_log)
    last = len(sim.gap_counts) - 1
    sim.gap_counts[min(max(i, 0), last)] += count
