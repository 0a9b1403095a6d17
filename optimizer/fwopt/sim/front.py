"""The API server before the engine: one process with one queue, for requests coming in and tokens going out.

A request takes its time at once, however many others there are, so a burst enters the engine one after another; the
tokens of a step are sent after everything that had come when the step began. Tokens never queue for tokens: where the
server is behind, those of one request are merged and sent together (vLLM's RequestOutputCollector, SGLang's out_list),
so a server that is slower than the engine delays but does not throttle it.
"""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.queues import wait_at_end
from fwopt.sim.state import Sim


@compiled
def receive(sim: Sim, r: int, s: int, now: float) -> None:
    """The server takes sequence s, which comes at `now`."""
    replica, limits, slot = sim.replica[r], sim.limits[0], sim.slot[s]
    sent = replica.output_s <= now
    busy = replica.front_after if sent else replica.front_free
    free = max(busy, now) + limits.front_request + slot.prompt * limits.front_token
    replica.front_free = free
    replica.front_after = free
    if not sent:
        replica.front_after = max(free, replica.output_s) + replica.output_chunks * limits.front_chunk
    slot.enter = free + limits.request_latency
    slot.next = -1
    if replica.in_front > 0:
        sim.slot[replica.front_tail].next = s
    else:
        replica.front_head = s
    replica.front_tail = s
    replica.in_front += 1


@compiled
def next_entry(sim: Sim, r: int) -> float:
    """When the first request that the server still has reaches the engine."""
    return sim.slot[sim.replica[r].front_head].enter


@compiled
def hear(sim: Sim, r: int) -> None:
    """Queue what the engine can see: what has reached it by the time the step is put together, which is a step ahead
    where scheduling is asynchronous and something runs."""
    replica = sim.replica[r]
    if replica.running + replica.leaving == 0 or not sim.limits[0].lookahead:
        replica.decided = replica.clock
    while replica.in_front > 0 and next_entry(sim, r) <= replica.decided:
        s = replica.front_head
        replica.front_head = sim.slot[s].next
        replica.in_front -= 1
        wait_at_end(sim, r, s)


@compiled
def send(sim: Sim, r: int, chunks: int) -> None:
    """Send the tokens of the step that has just ended, or of the last of several steps with as many."""
    replica = sim.replica[r]
    replica.output_s, replica.output_chunks = replica.clock, chunks
    replica.front_after = shown_at(sim, r, replica.clock, chunks)
    replica.shown = replica.front_after


@compiled
def shown_at(sim: Sim, r: int, end: float, chunks: int) -> float:
    """When the client has the tokens of a step that ended at `end`."""
    replica = sim.replica[r]
    return max(replica.shown, max(replica.front_free, end) + chunks * sim.limits[0].front_chunk)
