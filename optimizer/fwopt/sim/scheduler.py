"""One replica's engine loop: vLLM V1's scheduling, iteration by iteration.

A step first serves every running sequence in order of admission: one token for each that decodes, then
the next chunk of the one whose prompt is half computed. If blocks run out, the sequence admitted last is
preempted (its blocks are released, it returns to the head of the queue and is computed anew), and nobody
is admitted in that step. Otherwise waiting requests are admitted in order while token budget, sequence
limit and free blocks last; a request is admitted only if its whole prompt fits in the free blocks
(vLLM's `scheduler_reserve_full_isl`), although blocks are taken chunk by chunk.
"""

from __future__ import annotations

from fwopt.sim.decode import decode_run
from fwopt.sim.jit import compiled
from fwopt.sim.kv import take
from fwopt.sim.lookup import count_gaps, decode_line, prefill_time
from fwopt.sim.sequence import admit, after_prompt, blocks, growing, pop_finished, preempt_last, schedule_chunk
from fwopt.sim.state import PREFILL_FIRST, Sim

_MANY = 1 << 40


@compiled
def _spend(sim: Sim, r: int, gpu_s: float, sequences: int, steps: int) -> float:
    """Advance the clock by one step of `gpu_s` device seconds; returns its length."""
    replica, limits = sim.replica[r], sim.limits[0]
    cpu_s = limits.step_cpu + sequences * limits.sequence_cpu
    length = max(gpu_s, cpu_s) + limits.serial + sequences * limits.sequence_serial + limits.prefill_step
    replica.decided = replica.clock
    replica.clock += length
    replica.steps += steps
    replica.busy_s += length
    replica.batch_s += length * sequences
    replica.host_s += length - gpu_s
    return length


@compiled
def _mixed_step(
    sim: Sim, r: int, decoding: int, prefill_s: float, chunks: int, new_tokens: int, ready_from: int, ready_count: int
) -> None:
    """One step that computes prompt chunks beside `decoding` decodes."""
    replica = sim.replica[r]
    sampled = decoding + ready_count
    gpu_s = sim.mixed_s[decoding + new_tokens] + sim.sample_s[sampled] + prefill_s
    sim.spent_token[decoding + new_tokens] += sim.mixed_s[decoding + new_tokens]
    sim.spent_sample[sampled] += sim.sample_s[sampled]
    if decoding > 0:
        j, decode_s, _ = decode_line(sim, decoding, replica.context_sum / decoding)
        gpu_s += decode_s
        sim.spent_decode[decoding, j] += decode_s
    length = _spend(sim, r, gpu_s, decoding + chunks, 1)
    if decoding > 0:
        count_gaps(sim, length, decoding)
        replica.counter += 1
        replica.context_sum += decoding
        pop_finished(sim, r)
    s = ready_from
    for _ in range(ready_count):
        following = sim.slot[s].next
        after_prompt(sim, r, s)
        s = following


@compiled
def step(sim: Sim, r: int, until: float) -> None:
    """Schedule and run the next step, or the next run of equal decode steps, of replica r."""
    replica, limits = sim.replica[r], sim.limits[0]
    replica.last_finished = 0
    preempted = False
    grown = growing(sim, r, 0) if replica.decoding > 0 else 0
    while grown > limits.kv_blocks - replica.used:
        preempt_last(sim, r)
        preempted = True
        grown = growing(sim, r, 0) if replica.decoding > 0 else 0
    decoding = replica.decoding
    if limits.policy == PREFILL_FIRST:
        decoding, grown = 0, 0
    take(sim, r, grown)  # running sequences are served before anyone is admitted
    budget = limits.budget - decoding
    prefill_s, chunks, new_tokens, ready_from, ready = 0.0, 0, 0, -1, 0
    s = replica.partial
    if s >= 0 and budget > 0:
        slot = sim.slot[s]
        chunk = min(slot.target - slot.computed, budget)
        need = blocks(slot.computed + chunk, limits.block_size) - blocks(slot.computed, limits.block_size)
        if need > limits.kv_blocks - replica.used:
            preempt_last(sim, r)
            preempted = True
        else:
            past = slot.computed
            chunk = schedule_chunk(sim, r, s, budget)
            prefill_s += prefill_time(sim, past, slot.computed)
            chunks, new_tokens, budget = 1, chunk, budget - chunk
            if slot.computed == slot.target:
                replica.partial, ready_from, ready = -1, s, 1
    if replica.decoding == 0 and chunks == 0:
        replica.decided = replica.clock  # nothing was under way: the step is put together now
    while (
        not preempted
        and replica.partial < 0
        and budget > 0
        and replica.waiting > 0
        and replica.running < limits.max_seqs
        and (not limits.lookahead or sim.slot[replica.wait_head].arrival <= replica.decided)
    ):
        s = replica.wait_head
        chunk = admit(sim, r, budget)
        if chunk == 0:
            break
        slot = sim.slot[s]
        prefill_s += prefill_time(sim, slot.computed - chunk, slot.computed)
        chunks, new_tokens, budget = chunks + 1, new_tokens + chunk, budget - chunk
        if slot.computed == slot.target:
            ready_from = s if ready == 0 else ready_from
            ready += 1
        else:
            replica.partial = s
    if new_tokens > 0:
        _mixed_step(sim, r, decoding, prefill_s, chunks, new_tokens, ready_from, ready)
    else:
        replica.used -= grown  # decode_run takes the blocks of all its steps together
        if replica.decoding > 0:
            unseen = limits.lookahead and replica.waiting > 0 and sim.slot[replica.wait_head].arrival > replica.decided
            decode_run(sim, r, until, 1 if unseen else _MANY)


@compiled
def advance(sim: Sim, r: int, until: float) -> None:
    """Run replica r until its clock reaches `until` (no step starts later) or it has nothing to do.

    With a closed load it also stops after a step in which requests ended, so that their successors can arrive.
    """
    replica = sim.replica[r]
    while replica.clock < until and replica.running + replica.waiting > 0:
        step(sim, r, until)
        if sim.limits[0].closed and replica.last_finished > 0:
            break
