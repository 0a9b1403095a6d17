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
def _spend(sim: Sim, r: int, gpu_s: float, sequences: int) -> float:
    """Advance the clock by one step of `gpu_s` device seconds; returns its length."""
    replica, limits = sim.replica[r], sim.limits[0]
    cpu_s = limits.step_cpu + sequences * limits.sequence_cpu
    length = max(gpu_s, cpu_s) + limits.serial + sequences * limits.sequence_serial + limits.prefill_step
    replica.decided = replica.clock
    replica.clock += length
    replica.steps += 1
    replica.busy_s += length
    replica.batch_s += length * sequences
    replica.host_s += length - gpu_s
    return length


@compiled
def _serve_decodes(sim: Sim, r: int) -> bool:
    """Give every decoding sequence its token and its block; True if someone had to be preempted for that."""
    replica, limits = sim.replica[r], sim.limits[0]
    preempted = False
    grown = growing(sim, r, 0) if replica.decoding > 0 else 0
    while grown > limits.kv_blocks - replica.used:
        preempt_last(sim, r)
        preempted = True
        grown = growing(sim, r, 0) if replica.decoding > 0 else 0
    replica.step_decodes, replica.step_blocks = replica.decoding, grown
    if limits.policy == PREFILL_FIRST:
        replica.step_decodes, replica.step_blocks = 0, 0
    replica.step_chunks, replica.step_tokens, replica.step_attention_s = 0, 0, 0.0
    replica.step_ready, replica.step_ready_from = 0, -1
    take(sim, r, replica.step_blocks)
    return preempted


@compiled
def _left(sim: Sim, r: int) -> int:
    """Tokens of the budget that the step has not given away."""
    return sim.limits[0].budget - sim.replica[r].step_decodes - sim.replica[r].step_tokens


@compiled
def _add_chunk(sim: Sim, r: int, s: int, tokens: int) -> None:
    """`tokens` more of sequence s's prompt are in the step."""
    replica, slot = sim.replica[r], sim.slot[s]
    replica.step_chunks += 1
    replica.step_tokens += tokens
    replica.step_attention_s += prefill_time(sim, slot.computed - tokens, slot.computed)
    if slot.computed < slot.target:
        replica.partial = s
        return
    replica.partial = -1
    if replica.step_ready == 0:
        replica.step_ready_from = s
    replica.step_ready += 1


@compiled
def _continue_prompt(sim: Sim, r: int) -> bool:
    """Give the half-computed prompt its next chunk; True if it had to be preempted instead."""
    replica, limits = sim.replica[r], sim.limits[0]
    s, most = replica.partial, _left(sim, r)
    if s < 0 or most <= 0:
        return False
    slot = sim.slot[s]
    end = min(slot.target, slot.computed + most)
    need = blocks(end, limits.block_size) - blocks(slot.computed, limits.block_size)
    if need > limits.kv_blocks - replica.used:
        preempt_last(sim, r)
        return True
    _add_chunk(sim, r, s, schedule_chunk(sim, r, s, most))
    return False


@compiled
def _seen(sim: Sim, r: int) -> bool:
    """Whether the head of the queue had arrived when the step was put together (a step ahead, if asynchronous)."""
    replica = sim.replica[r]
    return not sim.limits[0].lookahead or sim.slot[replica.wait_head].arrival <= replica.decided


@compiled
def _admit_waiting(sim: Sim, r: int) -> None:
    """Admit from the head of the queue; the first that has to wait ends it (nobody overtakes)."""
    replica, limits = sim.replica[r], sim.limits[0]
    if replica.decoding == 0 and replica.step_chunks == 0:
        replica.decided = replica.clock  # nothing was under way: the step is put together now
    while replica.partial < 0 and replica.waiting > 0 and replica.running < limits.max_seqs and _seen(sim, r):
        most = _left(sim, r)
        if most <= 0:
            break
        s = replica.wait_head
        tokens = admit(sim, r, most)
        if tokens == 0:
            break
        _add_chunk(sim, r, s, tokens)


@compiled
def _mixed_step(sim: Sim, r: int) -> None:
    """Run a step that computes prompt chunks, beside decodes or alone."""
    replica = sim.replica[r]
    decoding, tokens = replica.step_decodes, replica.step_decodes + replica.step_tokens
    sampled = decoding + replica.step_ready
    gpu_s = sim.mixed_s[tokens] + sim.sample_s[sampled] + replica.step_attention_s
    sim.spent_token[tokens] += sim.mixed_s[tokens]
    sim.spent_sample[sampled] += sim.sample_s[sampled]
    if decoding > 0:
        j, decode_s, _ = decode_line(sim, decoding, replica.context_sum / decoding)
        gpu_s += decode_s
        sim.spent_decode[decoding, j] += decode_s
    length = _spend(sim, r, gpu_s, decoding + replica.step_chunks)
    if decoding > 0:
        count_gaps(sim, length, decoding)
        replica.counter += 1
        replica.context_sum += decoding
        pop_finished(sim, r)
    s = replica.step_ready_from
    for _ in range(replica.step_ready):
        following = sim.slot[s].next
        after_prompt(sim, r, s)
        s = following


@compiled
def step(sim: Sim, r: int, until: float) -> None:
    """Schedule and run the next step, or the next run of equal decode steps, of replica r."""
    replica = sim.replica[r]
    replica.last_finished = 0
    preempted = _serve_decodes(sim, r)
    preempted = _continue_prompt(sim, r) or preempted
    if not preempted:
        _admit_waiting(sim, r)
    if replica.step_tokens > 0:
        _mixed_step(sim, r)
        return
    replica.used -= replica.step_blocks  # decode_run takes the blocks of all its steps together
    if replica.decoding > 0:
        ahead = replica.waiting > 0 and not _seen(sim, r)  # someone joins in the step after next: go one by one
        decode_run(sim, r, until, 1 if ahead else _MANY)


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
