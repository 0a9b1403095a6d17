"""The life of one sequence on a replica: admitted, computed chunk by chunk, decoding, preempted, finished."""

from __future__ import annotations

import math

from fwopt.sim.jit import compiled
from fwopt.sim.kv import find_prefix, publish, reference_found, release, take
from fwopt.sim.leaving import known_blocks, lose_blocks, see_off, start_leaving
from fwopt.sim.lookup import count_gaps, prefill_time
from fwopt.sim.queues import (
    drop_end,
    pop_end,
    push_end,
    start_running,
    stop_running,
    stop_waiting,
    wait_at_end,
    wait_at_front,
)
from fwopt.sim.reserve import fits, may_produce, produced, victim
from fwopt.sim.state import PREFILL_FIRST, Sim
from fwopt.sim.states import chunk_end, keep_state, must_wait


@compiled
def blocks(tokens: int, size: int) -> int:
    return (tokens + size - 1) // size


@compiled
def budget_left(sim: Sim, r: int) -> int:
    """Tokens of the budget that the step has not given away."""
    replica = sim.replica[r]
    return sim.limits[0].budget - replica.step_decodes - replica.step_guessed - replica.step_tokens


@compiled
def growing(sim: Sim, r: int, ahead: int) -> int:
    """Decoding sequences that need a new block in the step `ahead` steps from now."""
    size = sim.limits[0].block_size
    return sim.phase[r, (-(sim.replica[r].counter + ahead)) % size]


@compiled
def next_guess(sim: Sim, s: int) -> None:
    """Go on to the next measured step."""
    slot = sim.slot[s]
    slot.guess += 1
    slot.guesses_left -= 1
    if slot.guesses_left <= 0:
        replies = len(sim.reply_from) - 1
        # equally often each, for consecutive requests different ones
        reply = (slot.request * 7919 + slot.generated * 104729 + 1) * 48271 % 2147483647 % replies
        slot.guess = sim.reply_from[reply]
        slot.guesses_left = sim.reply_from[reply + 1] - slot.guess


@compiled
def _join(sim: Sim, r: int, s: int) -> None:
    """Prompt computed, first token sampled: the sequence decodes from now on."""
    replica, slot = sim.replica[r], sim.slot[s]
    slot.joined = replica.counter
    if sim.limits[0].policy == PREFILL_FIRST:  # sequences that decode got no token in this step
        replica.joined += 1
        replica.joined_shown += replica.shown
    replica.decoding += 1
    replica.context_sum += slot.target + 1
    if sim.limits[0].guessing:
        slot.held = blocks(slot.target, sim.limits[0].block_size)
        slot.last = replica.shown
        if slot.guess < 0:
            next_guess(sim, s)
        return
    sim.phase[r, (slot.target - replica.counter) % sim.limits[0].block_size] += 1
    push_end(sim, r, replica.counter + slot.output - slot.generated, s)


@compiled
def leave(sim: Sim, r: int, s: int) -> int:
    """Take a sequence out of the decoding batch; returns the tokens whose KV it holds."""
    replica, slot = sim.replica[r], sim.slot[s]
    held = slot.target + replica.counter - slot.joined
    if sim.limits[0].guessing:
        held = slot.prompt + slot.generated - 1
    replica.decoding -= 1
    replica.context_sum -= held + 1
    if sim.limits[0].guessing:
        return held
    sim.phase[r, (slot.target - slot.joined) % sim.limits[0].block_size] -= 1
    return held


@compiled
def _held(sim: Sim, s: int, tokens: int) -> int:
    """KV blocks of sequence s, which has computed `tokens`."""
    own = blocks(tokens, sim.limits[0].block_size)
    if sim.limits[0].guessing and sim.slot[s].joined >= 0:
        own = sim.slot[s].held
    return own + sim.limits[0].sequence_blocks


@compiled
def finish(sim: Sim, r: int, s: int, held_tokens: int) -> None:
    replica, slot = sim.replica[r], sim.slot[s]
    slot.computed, slot.held, slot.last = held_tokens, _held(sim, s, held_tokens), replica.shown
    slot.joined = -1
    replica.last_finished += 1
    replica.full = 0
    start_leaving(sim, r, s)
    if not sim.limits[0].late:
        see_off(sim, r)


@compiled
def preempt_last(sim: Sim, r: int) -> None:
    """vLLM: the sequence admitted last gives up its blocks and waits before all others, unless it has ended."""
    s = sim.replica[r].run_tail
    if sim.slot[s].leaving:
        lose_blocks(sim, r, s)
        return
    _give_up(sim, r, s)
    wait_at_front(sim, r, s)


@compiled
def retract(sim: Sim, r: int) -> None:
    """SGLang: a decoding sequence gives up its blocks and waits after all others."""
    s = victim(sim, r)
    _give_up(sim, r, s)
    wait_at_end(sim, r, s)


@compiled
def _give_up(sim: Sim, r: int, s: int) -> None:
    replica, slot = sim.replica[r], sim.slot[s]
    if slot.joined < 0:
        replica.partial = -1
        replica.half -= sim.limits[0].aligned
        held, slot.fresh = slot.computed, 0
    elif sim.limits[0].guessing:
        held = leave(sim, r, s)
    else:
        drop_end(sim, r, s)
        slot.fresh = min(replica.counter - slot.joined, 1)
        slot.generated = produced(sim, r, s)
        held = leave(sim, r, s)
        slot.last = replica.decode_shown
    release(sim, r, s, _held(sim, s, held), known_blocks(sim, s, held))
    slot.joined = -1
    stop_running(sim, r, s)
    slot.target = slot.prompt + slot.generated
    slot.computed = 0
    slot.preempted += 1
    replica.preemptions += 1


@compiled
def schedule_chunk(sim: Sim, r: int, s: int, most: int) -> int:
    """Give sequence s up to `most` prompt tokens of this step; returns how many."""
    slot, size = sim.slot[s], sim.limits[0].block_size
    chunk = min(slot.target - slot.computed, most)
    start, before = slot.computed, blocks(slot.computed, size)
    slot.computed += chunk
    take(sim, r, blocks(slot.computed, size) - before)
    publish(sim, r, s)
    if sim.limits[0].aligned:
        keep_state(sim, r, s, start)
    return chunk


@compiled
def add_chunk(sim: Sim, r: int, s: int, tokens: int) -> None:
    """`tokens` more of sequence s's prompt are in the step."""
    replica, slot, aligned = sim.replica[r], sim.slot[s], sim.limits[0].aligned
    replica.step_chunks += 1
    replica.step_tokens += tokens
    replica.step_context += slot.computed
    replica.step_attention_s += prefill_time(sim, slot.computed - tokens, slot.computed)
    if slot.computed < slot.target:
        if not aligned:
            replica.partial = s
        return
    replica.partial = -1
    replica.half -= aligned
    replica.reserved_new += may_produce(sim, s, slot.generated)
    if replica.step_ready == 0:
        replica.step_ready_from = s
    replica.step_ready += 1


@compiled
def admit(sim: Sim, r: int, most: int) -> int:
    """Admit the head of the queue with up to `most` tokens; returns how many it got, 0 if it must wait."""
    replica, limits = sim.replica[r], sim.limits[0]
    s = replica.wait_head
    slot = sim.slot[s]
    found, own, tokens, idle = find_prefix(sim, r, s)
    end = chunk_end(sim, s, tokens, most)
    if limits.whole_prompts and slot.target - tokens > most:
        return 0
    if limits.aligned:
        replica.step_missed = must_wait(sim, r, s, found, own)
        if end == tokens or replica.step_missed:
            return 0
    need = blocks(slot.target, limits.block_size) - tokens // limits.block_size + limits.sequence_blocks
    if need + idle > limits.kv_blocks - replica.used or (limits.reserving and not fits(sim, r, s, tokens, idle)):
        replica.full = 1
        return 0
    stop_waiting(sim, r)
    start_running(sim, r, s)
    reference_found(sim, r, s, found, own, tokens)
    take(sim, r, limits.sequence_blocks)
    slot.computed, slot.joined = tokens, -1
    replica.half += limits.aligned
    if slot.preempted > 0 and not limits.recomputing:
        kept = slot.target - 1
        take(sim, r, max(blocks(kept, limits.block_size) - blocks(tokens, limits.block_size), 0))
        slot.computed = max(kept, tokens)
        end = min(slot.target, slot.computed + most)
        publish(sim, r, s)
    if math.isnan(slot.scheduled):
        slot.scheduled = replica.clock
        slot.hit = tokens
    return schedule_chunk(sim, r, s, end - slot.computed)


@compiled
def after_prompt(sim: Sim, r: int, s: int) -> None:
    """The step that completed the prompt (or the recomputation) has run: one token was sampled."""
    replica, slot = sim.replica[r], sim.slot[s]
    slot.fresh = 0
    if math.isnan(slot.first):
        slot.first = replica.shown
    else:
        count_gaps(sim, replica.shown - slot.last, 1.0)
    slot.generated += 1
    if slot.generated >= slot.output:
        finish(sim, r, s, slot.target)
    else:
        # `generated` counts this token; the context it continues from is `target`
        _join(sim, r, s)


@compiled
def pop_finished(sim: Sim, r: int) -> None:
    replica = sim.replica[r]
    while replica.heap > 0 and sim.heap_key[r, 0] <= replica.counter:
        s = pop_end(sim, r)
        sim.slot[s].fresh = 1
        finish(sim, r, s, leave(sim, r, s))
