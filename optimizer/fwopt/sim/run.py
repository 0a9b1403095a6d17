"""The outer loop: requests arrive, a router picks a replica, replicas advance."""

from __future__ import annotations

import math

from fwopt.sim.front import receive
from fwopt.sim.jit import compiled, entry
from fwopt.sim.leaving import see_off
from fwopt.sim.routing import LEAST_REQUESTS, pick
from fwopt.sim.scheduler import advance
from fwopt.sim.state import Floats, Integers, Sim


@compiled
def _new_slot(sim: Sim, request: int, prompt: int, output: int, allowed: int, ids_from: int, ids: int) -> int:
    s = sim.free_slots[sim.free_slots[0]]
    sim.free_slots[0] -= 1
    slot = sim.slot[s]
    slot.request, slot.prompt, slot.output, slot.allowed = request, prompt, output, allowed
    slot.generated, slot.target, slot.computed = 0, prompt, 0
    slot.ids_from, slot.ids, slot.sharing = ids_from, ids, ids
    slot.referenced, slot.shared, slot.own, slot.own_at = 0, 0, 0, -1
    if len(sim.stated) > 0:
        slot.own, slot.own_from = sim.stated[request] // sim.limits[0].block_size, 0
    slot.scheduled, slot.first, slot.last = math.nan, math.nan, math.nan
    slot.hit, slot.preempted = 0, 0
    slot.guess, slot.guesses_left = -1, 0
    slot.fresh, slot.leaving = 0, 0
    slot.state, slot.junction, slot.chunk_step = 0, 0, -2
    return s


@entry
def run_open(
    sim: Sim,
    policy: int,
    arrival: Floats,
    prompt: Integers,
    output: Integers,
    allowed: Integers,
    offsets: Integers,
    request: Integers,
    turn: int,
) -> int:
    """Serve requests at their own arrival times (ascending); returns the router's next turn.

    Requests still in flight afterwards stay in `sim`: call again with the next part of the trace, or `drain`.
    """
    for k in range(len(arrival)):
        now = arrival[k]
        for r in range(len(sim.replica)):
            advance(sim, r, now)
        ids = offsets[k + 1] - offsets[k]
        r = pick(sim, policy, turn, now, prompt[k], offsets[k], ids)
        turn = r + 1 if policy == LEAST_REQUESTS else turn + 1
        s = _new_slot(sim, request[k], prompt[k], output[k], allowed[k], offsets[k], ids)
        receive(sim, r, s, now)
    return turn


@entry
def drain(sim: Sim) -> None:
    """Let every replica finish what it has."""
    for r in range(len(sim.replica)):
        advance(sim, r, math.inf)
        see_off(sim, r)


@entry
def run_closed(
    sim: Sim,
    concurrency: int,
    arrival: Floats,
    prompt: Integers,
    output: Integers,
    allowed: Integers,
    offsets: Integers,
    request: Integers,
) -> None:
    """Serve requests on replica 0 with `concurrency` always in flight; writes each one's arrival time: that at which
    the client has the last token of the request before it."""
    replica = sim.replica[0]
    sent, open_slots = 0, concurrency
    while True:
        while sent < len(prompt) and open_slots > 0:
            arrival[sent] = replica.shown
            ids = offsets[sent + 1] - offsets[sent]
            s = _new_slot(sim, request[sent], prompt[sent], output[sent], allowed[sent], offsets[sent], ids)
            receive(sim, 0, s, replica.shown)
            sent += 1
            open_slots -= 1
        if replica.running + replica.waiting + replica.in_front == 0:
            see_off(sim, 0)
            break
        advance(sim, 0, math.inf)
        open_slots += replica.last_finished
