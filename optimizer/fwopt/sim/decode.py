"""Decode steps over an unchanged batch, advanced together in closed form.

Within one cell of the decode table a step's time is linear in the mean context, which grows by one token a
step: k steps cost k t0 + slope k (k - 1) / 2. Cost thus follows changes of the batch, not tokens.
"""

from __future__ import annotations

import math

from fwopt.sim.front import send, shown_at
from fwopt.sim.jit import compiled
from fwopt.sim.kv import take
from fwopt.sim.lookup import count_gaps, decode_line, tally_decode
from fwopt.sim.sequence import growing, pop_finished
from fwopt.sim.state import Sim


@compiled
def _steps_until(span: float, first: float, growth: float) -> float:
    """Steps of lengths first, first + growth, … that cover `span` seconds."""
    if growth <= 0.0:
        return math.ceil(span / first)
    half = first - 0.5 * growth
    return math.ceil((math.sqrt(half * half + 2.0 * growth * span) - half) / growth)


@compiled
def _count_decode_gaps(sim: Sim, r: int, steps: int, first_shown: float) -> None:
    """Gaps of `steps` decode steps, of which the first was shown at `first_shown` and the last now. Where prompts
    stop all decoding, sequences that have joined since the last decode step waited from their own first token."""
    replica = sim.replica[r]
    n = replica.decoding
    if replica.joined > 0:
        joined = min(replica.joined, n)
        count_gaps(sim, first_shown - replica.decode_shown, n - joined)
        count_gaps(sim, first_shown - replica.joined_shown / replica.joined, joined)
        replica.joined, replica.joined_shown = 0, 0.0
        replica.decode_shown = first_shown
        steps -= 1
    if steps > 0:
        count_gaps(sim, (replica.shown - replica.decode_shown) / steps, steps * n)
    replica.decode_shown = replica.shown


@compiled
def decode_run(sim: Sim, r: int, until: float, most_steps: int) -> None:
    """Decode steps over the unchanged batch: to its next end, the first step boundary at or after `until`,
    or the last step for which blocks are free (at least one, which the caller has made sure of)."""
    replica, limits = sim.replica[r], sim.limits[0]
    n = replica.decoding
    free = limits.kv_blocks - replica.used
    steps = min(sim.heap_key[r, 0] - replica.counter, most_steps)
    cycles = free // n
    if cycles * limits.block_size < steps:
        left, most = free - cycles * n, cycles * limits.block_size
        while most < steps and growing(sim, r, most) <= left:
            left -= growing(sim, r, most)
            most += 1
        steps = min(steps, most)
    fixed = sim.token_s[n] + sim.sample_s[n]
    cpu_s = limits.step_cpu + n * limits.sequence_cpu
    context = replica.context_sum / n
    done = 0
    while done < steps and replica.clock < until:
        j, decode_s, slope = decode_line(sim, n, context)
        first, count = fixed + decode_s, steps - done
        edge = sim.decode_context[j + 1] - context
        if j < len(sim.decode_context) - 2 and edge > 0 and edge < count:
            count = math.ceil(edge)
        growth = slope
        if first < cpu_s:  # the host is slower until the context has grown
            if slope > 0 and (cpu_s - first) / slope < count:
                count = max(1, math.ceil((cpu_s - first) / slope))
            growth = 0.0
        step_s = max(first, cpu_s) + limits.serial + n * limits.sequence_serial
        if until < math.inf:
            count = max(1, min(count, int(min(_steps_until(until - replica.clock, step_s, growth), 1e15))))
        length = count * step_s + growth * (0.5 * count * (count - 1))
        attention = count * decode_s + slope * (0.5 * count * (count - 1))
        sim.alone_steps[n] += count
        sim.sampled_steps[n] += count
        tally_decode(sim, n, j, count, context + 0.5 * (count - 1), attention)
        first_shown = shown_at(sim, r, replica.clock + step_s, n)
        replica.clock += length
        replica.decided = replica.clock - (step_s + growth * (count - 1))
        send(sim, r, n)
        _count_decode_gaps(sim, r, count, first_shown)
        replica.steps += count
        replica.busy_s += length
        replica.batch_s += length * n
        replica.host_s += length - count * fixed - attention
        context += count
        done += count
    blocks = done // limits.block_size * n
    for ahead in range(done % limits.block_size):
        blocks += growing(sim, r, ahead)
    take(sim, r, blocks)
    replica.counter += done
    replica.ratio_steps += done
    replica.context_sum += n * done
    pop_finished(sim, r)
