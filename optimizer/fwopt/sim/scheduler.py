"""One replica's engine loop: vLLM V1's scheduling, iteration by iteration.

A step first serves every running sequence in order of admission: one token for each that decodes, then
the next chunk of the one whose prompt is half computed. If blocks run out, the sequence admitted last is
preempted (its blocks are released, it returns to the head of the queue and is computed anew), and nobody
is admitted in that step. Otherwise waiting requests are admitted in order while token budget, sequence
limit and free blocks last; a request is admitted only if its whole prompt fits in the free blocks
(vLLM's `scheduler_reserve_full_isl`), although blocks are taken chunk by chunk. Where a drafter guesses ahead, decodes
are as in `speculate`.
"""

from __future__ import annotations

from fwopt.sim.decode import decode_run
from fwopt.sim.front import hear, next_entry, send
from fwopt.sim.in_order import count_served, serve_in_order
from fwopt.sim.jit import compiled
from fwopt.sim.kv import take
from fwopt.sim.leaving import see_off
from fwopt.sim.lookup import count_gaps, decode_line, tally_decode, tally_prompts
from fwopt.sim.reserve import learn_share, reset_share, set_aside
from fwopt.sim.sequence import (
    add_chunk,
    admit,
    after_prompt,
    blocks,
    budget_left,
    growing,
    pop_finished,
    preempt_last,
    retract,
    schedule_chunk,
)
from fwopt.sim.speculate import keep_accepted, schedule_guesses
from fwopt.sim.state import MIXED, PREFILL_FIRST, Sim

_MANY = 1 << 40


@compiled
def _spend(sim: Sim, r: int, gpu_s: float, sequences: int) -> None:
    """Advance the clock by one step of `gpu_s` device seconds."""
    replica, limits = sim.replica[r], sim.limits[0]
    cpu_s = limits.step_cpu + sequences * limits.sequence_cpu
    length = max(gpu_s, cpu_s) + limits.serial + sequences * limits.sequence_serial
    if replica.step_chunks > 0:
        length += limits.prefill_step
        if replica.step_decodes > 0:
            length += limits.beside_step
    length += limits.lookup_token * replica.context_sum
    replica.decided = replica.clock
    replica.clock += length
    replica.steps += 1
    replica.busy_s += length
    replica.batch_s += length * sequences
    replica.host_s += length - gpu_s


@compiled
def _begin_step(sim: Sim, r: int) -> None:
    replica = sim.replica[r]
    replica.last_finished = 0
    replica.step_decodes, replica.step_guessed, replica.step_blocks = 0, 0, 0
    replica.step_missed, replica.step_idle, replica.step_idle_context = 0, 0, 0
    replica.step_chunks, replica.step_tokens, replica.step_context, replica.step_attention_s = 0, 0, 0, 0.0
    replica.step_ready, replica.step_ready_from, replica.reserved_new = 0, -1, 0
    hear(sim, r)


@compiled
def _make_room(sim: Sim, r: int) -> bool:
    """See to the blocks that one more token of every decoding sequence takes; True if someone had to give up his."""
    replica, limits = sim.replica[r], sim.limits[0]
    gave_up = False
    grown = growing(sim, r, 0) if replica.decoding > 0 else 0
    while grown > limits.kv_blocks - replica.used:
        if limits.reserving:
            retract(sim, r)
        else:
            preempt_last(sim, r)
        gave_up = True
        grown = growing(sim, r, 0) if replica.decoding > 0 else 0
    if gave_up and limits.reserving:
        learn_share(sim, r)
    replica.step_blocks = grown
    return gave_up


@compiled
def _continue_prompt(sim: Sim, r: int) -> bool:
    """Give the half-computed prompt its next chunk; True if it had to be preempted instead."""
    replica, limits = sim.replica[r], sim.limits[0]
    s, most = replica.partial, budget_left(sim, r)
    if s < 0 or most <= 0:
        return False
    slot = sim.slot[s]
    end = min(slot.target, slot.computed + most)
    need = blocks(end, limits.block_size) - blocks(slot.computed, limits.block_size)
    if need > limits.kv_blocks - replica.used:
        preempt_last(sim, r)
        return True
    add_chunk(sim, r, s, schedule_chunk(sim, r, s, most))
    return False


@compiled
def _admit_waiting(sim: Sim, r: int) -> None:
    """Admit from the head of the queue; the first that has to wait ends it (nobody overtakes)."""
    replica, limits = sim.replica[r], sim.limits[0]
    if limits.reserving:
        if replica.full or replica.waiting == 0:
            return
        set_aside(sim, r)
    while replica.partial < 0 and replica.waiting > 0 and replica.running + replica.leaving < limits.max_seqs:
        most = budget_left(sim, r)
        if most <= 0:
            break
        s = replica.wait_head
        tokens = admit(sim, r, most)
        if tokens == 0:
            break
        add_chunk(sim, r, s, tokens)


@compiled
def _mixed_step(sim: Sim, r: int) -> None:
    """Run a step that computes prompt chunks, beside decodes or alone, or one whose tokens were guessed."""
    replica, limits = sim.replica[r], sim.limits[0]
    decoding, checked = replica.step_decodes, replica.step_decodes + replica.step_guessed
    tokens, sampled = checked + replica.step_tokens, checked + replica.step_ready
    gpu_s = sim.sample_s[sampled] + replica.step_attention_s
    sim.sampled_steps[sampled] += 1.0
    if replica.step_chunks > 0:
        gpu_s += sim.mixed_s[tokens]
        sim.mixed_steps[tokens] += 1.0
        tally_prompts(sim, r)
    else:
        gpu_s += sim.token_s[tokens]
        sim.alone_steps[tokens] += 1.0
    if decoding > 0:
        context = (replica.context_sum - replica.step_idle_context) / (replica.decoding - replica.step_idle)
        j, decode_s, _ = decode_line(sim, decoding, context)
        decode_s += sim.beside_s[replica.step_tokens] * context * decoding
        gpu_s += decode_s
        tally_decode(sim, decoding, j, 1.0, context, decode_s)
    if limits.guessing:
        gpu_s += sim.drafter_s[decoding + replica.step_ready]
    _spend(sim, r, gpu_s, decoding + replica.step_chunks)
    if sampled > 0:
        send(sim, r, decoding + replica.step_ready)
    if replica.decoding == 0:
        replica.full = 0  # the prompts become a batch of their own, which has turned nobody away yet
    if limits.guessing:
        keep_accepted(sim, r)
    else:
        _advance_decodes(sim, r, decoding)
    s, ready = replica.step_ready_from, replica.step_ready
    while ready > 0:
        slot, following = sim.slot[s], sim.slot[s].next
        if (
            slot.joined < 0 and slot.computed >= slot.target and not slot.leaving
        ):  # all are, but where chunks are aligned
            after_prompt(sim, r, s)
            ready -= 1
        s = following


@compiled
def _advance_decodes(sim: Sim, r: int, decoding: int) -> None:
    """The step has run: the decoding sequences have one token more, all or none of them but where chunks are
    aligned."""
    replica = sim.replica[r]
    if sim.limits[0].aligned:
        count_served(sim, r, decoding)
    elif decoding == replica.decoding:
        if decoding > 0:
            count_gaps(sim, replica.shown - replica.decode_shown, decoding)
        replica.decode_shown = replica.shown
    if decoding > 0:
        replica.counter += 1
        replica.context_sum += decoding
        pop_finished(sim, r)


@compiled
def _put_together(sim: Sim, r: int) -> None:
    """Decide what is in the next step of replica r."""
    replica, limits = sim.replica[r], sim.limits[0]
    _begin_step(sim, r)
    gave_up = False
    if limits.guessing:
        gave_up = schedule_guesses(sim, r)
    elif limits.policy == MIXED and replica.half == 0:
        gave_up = _make_room(sim, r)
        replica.step_decodes = replica.decoding
        take(sim, r, replica.step_blocks)
    if replica.half > 0:
        gave_up = serve_in_order(sim, r) or gave_up
    gave_up = _continue_prompt(sim, r) or gave_up
    if not gave_up:
        _admit_waiting(sim, r)


@compiled
def step(sim: Sim, r: int, until: float) -> None:
    """Schedule and run the next step, or the next run of equal decode steps, of replica r."""
    replica, limits = sim.replica[r], sim.limits[0]
    _put_together(sim, r)
    freed = replica.leaving_head >= 0
    if freed:
        see_off(sim, r)
        if replica.step_decodes + replica.step_chunks == 0:  # nobody is in it: it takes no time
            _put_together(sim, r)
            freed = False
    if replica.step_tokens > 0 or (limits.guessing and replica.step_decodes > 0):
        _mixed_step(sim, r)
        return
    replica.used -= replica.step_blocks  # decode_run takes the blocks of all its steps together
    if limits.policy == PREFILL_FIRST:
        _make_room(sim, r)
    if replica.decoding > 0:
        _decode(sim, r, until, freed)


@compiled
def _decode(sim: Sim, r: int, until: float, freed: bool) -> None:
    """Decode until something changes; one by one while a request is on its way into the step after next, or may be
    admitted then, as when others' places and blocks were `freed` after this step was put together."""
    replica = sim.replica[r]
    if replica.waiting > 0 and (freed or replica.step_missed or (sim.limits[0].reserving and not replica.full)):
        decode_run(sim, r, until, 1)
    elif replica.in_front == 0:
        decode_run(sim, r, until, _MANY)
    elif next_entry(sim, r) > replica.clock:
        decode_run(sim, r, min(until, next_entry(sim, r)), _MANY)
    else:
        decode_run(sim, r, until, 1)


@compiled
def advance(sim: Sim, r: int, until: float) -> None:
    """Run replica r until its clock reaches `until` (no step starts later) or it has nothing to do.

    With a closed load it also stops after a step in which requests ended, so that their successors can arrive.
    """
    replica = sim.replica[r]
    while replica.clock < until and replica.running + replica.waiting + replica.in_front > 0:
        if replica.running + replica.waiting == 0:
            if next_entry(sim, r) >= until:
                break
            replica.clock = max(replica.clock, next_entry(sim, r))
            reset_share(sim, r)
        step(sim, r, until)
        if sim.limits[0].closed and replica.last_finished > 0:
            break
