"""A step in which several prompts are half computed: everyone who runs is served in order of admission.

Elsewhere a half-computed prompt has taken all that was left of the budget, so it is the last one admitted, and all
decodes come before it.
"""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.kv import take
from fwopt.sim.lookup import count_gaps
from fwopt.sim.queues import drop_end, push_end
from fwopt.sim.sequence import add_chunk, blocks, budget_left, preempt_last, schedule_chunk
from fwopt.sim.state import Sim
from fwopt.sim.states import chunk_end


@compiled
def _sit_out(sim: Sim, r: int, s: int) -> None:
    """The budget is spent before decoding sequence s, but not before others that decode: it is a step behind them."""
    replica, slot, size = sim.replica[r], sim.slot[s], sim.limits[0].block_size
    replica.step_idle += 1
    replica.step_idle_context += slot.target + 1 + replica.counter - slot.joined
    sim.phase[r, (slot.target - slot.joined) % size] -= 1
    drop_end(sim, r, s)
    slot.joined += 1
    sim.phase[r, (slot.target - slot.joined) % size] += 1
    push_end(sim, r, slot.joined + slot.output - slot.generated, s)


@compiled
def _wanted(sim: Sim, r: int, s: int) -> tuple[int, int]:
    """(tokens of sequence s in this step, KV blocks that it lacks for them)."""
    slot, limits = sim.slot[s], sim.limits[0]
    if slot.leaving:
        return 0, 0
    if slot.joined < 0:
        end = chunk_end(sim, s, slot.computed, budget_left(sim, r))
        return end - slot.computed, blocks(end, limits.block_size) - blocks(slot.computed, limits.block_size)
    if limits.guessing:  # served before, as in `speculate`
        return 0, 0
    return 1, (slot.target + sim.replica[r].counter - slot.joined) % limits.block_size == 0


@compiled
def serve_in_order(sim: Sim, r: int) -> bool:
    """Put everyone who runs into the step as far as the budget goes; True if someone had to give up his blocks."""
    replica, limits = sim.replica[r], sim.limits[0]
    gave_up = False
    s = replica.run_head
    while s >= 0 and budget_left(sim, r) > 0:
        slot = sim.slot[s]
        tokens, need = _wanted(sim, r, s)
        while need > limits.kv_blocks - replica.used:
            last, gave_up = replica.run_tail, True
            preempt_last(sim, r)
            if last == s:
                return True
        if tokens > 0 and slot.joined < 0:
            add_chunk(sim, r, s, schedule_chunk(sim, r, s, tokens))
        elif tokens > 0:
            take(sim, r, need)
            replica.step_decodes += 1
            replica.step_blocks += need
        s = slot.next
    while s >= 0:
        if sim.slot[s].joined >= 0 and replica.step_decodes > 0 and not limits.guessing:
            _sit_out(sim, r, s)
        s = sim.slot[s].next
    return gave_up


@compiled
def count_served(sim: Sim, r: int, decoding: int) -> None:
    """Count the gaps of the `decoding` sequences that the step served; the others' last tokens are older than
    `decode_shown` from now on. Who sat out before is taken to be served first."""
    replica = sim.replica[r]
    late = min(replica.joined, decoding)
    count_gaps(sim, replica.shown - replica.decode_shown, decoding - late)
    older = replica.joined_shown / max(replica.joined, 1)
    count_gaps(sim, replica.shown - older, late)
    still, sat_out = replica.joined - late, replica.decoding - decoding
    replica.joined, replica.joined_shown = sat_out, still * older + (sat_out - still) * replica.decode_shown
    replica.decode_shown = replica.shown
