"""The end of a sequence as an asynchronous scheduler sees it: one step late.

vLLM puts step n + 1 together while step n runs (`step_with_batch_queue`). A sequence that ends with step n has no
tokens in step n + 1, as its `max_tokens` is known, but it still has its place among the running ones and its blocks:
both are free for step n + 2. Where there is nothing else to do, step n + 1 is empty and takes no time. If blocks run
out, it can still be the one that gives up its own. The client has the last token when step n ends.

The prefix cache, too, learns late what is decoded: of a sequence that is preempted for step n + 1, the tokens that step
n makes are not in it.
"""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.kv import release
from fwopt.sim.queues import stop_running
from fwopt.sim.state import Sim


@compiled
def known_blocks(sim: Sim, s: int, tokens: int) -> int:
    """Blocks that the prefix cache knows of a running sequence that has computed `tokens`."""
    if sim.limits[0].late:
        tokens -= sim.slot[s].fresh
    return tokens // sim.limits[0].block_size


@compiled
def _record(sim: Sim, r: int, s: int) -> None:
    slot, done = sim.slot[s], sim.done[sim.done_count[0]]
    sim.done_count[0] += 1
    done.request, done.replica = slot.request, r
    done.scheduled, done.first, done.finish = slot.scheduled, slot.first, slot.last
    done.hit, done.preempted = slot.hit, slot.preempted
    sim.free_slots[0] += 1
    sim.free_slots[sim.free_slots[0]] = s


@compiled
def start_leaving(sim: Sim, r: int, s: int) -> None:
    """Sequence s has ended; it stays in the running list until `see_off`."""
    replica = sim.replica[r]
    sim.slot[s].leaving, sim.slot[s].after = 1, -1
    if replica.leaving_head < 0:
        replica.leaving_head = s
    else:
        sim.slot[replica.leaving_tail].after = s
    replica.leaving_tail = s
    replica.leaving += 1
    replica.running -= 1


@compiled
def _unlink(sim: Sim, r: int, s: int) -> None:
    replica = sim.replica[r]
    replica.leaving -= 1
    replica.running += 1  # as it was not counted
    sim.slot[s].leaving = 0
    stop_running(sim, r, s)


@compiled
def lose_blocks(sim: Sim, r: int, s: int) -> None:
    """Sequence s, which is leaving, is preempted."""
    slot = sim.slot[s]
    release(sim, r, s, slot.held, known_blocks(sim, s, slot.computed))
    _unlink(sim, r, s)
    slot.preempted += 1
    sim.replica[r].preemptions += 1


@compiled
def see_off(sim: Sim, r: int) -> None:
    """Free the places and the blocks of those that are leaving: at once, or where ends are seen late when the next step
    has been put together."""
    replica = sim.replica[r]
    s = replica.leaving_head
    while s >= 0:
        slot = sim.slot[s]
        if slot.leaving:
            release(sim, r, s, slot.held, slot.computed // sim.limits[0].block_size)
            _unlink(sim, r, s)
        _record(sim, r, s)
        s = slot.after
    replica.leaving_head = -1
