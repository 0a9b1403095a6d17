"""The router: which replica a request goes to, by what the router knows when the request arrives."""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.state import Sim
from fwopt.spec.router import BALANCE_ABSOLUTE, BALANCE_RELATIVE, CACHE_THRESHOLD

ROUND_ROBIN = 0
LEAST_REQUESTS = 1
CACHE_AWARE = 2


@compiled
def pick(sim: Sim, policy: int, turn: int, now: float, prompt: int, ids_from: int, ids: int) -> int:
    """Replica for the next request, of `prompt` tokens and with the prefix ids `sim.ids[ids_from : ids_from + ids]`.

    least_requests: fewest unfinished requests (nginx `least_conn`), ties in turn.
    """
    replicas = len(sim.replica)
    if policy == ROUND_ROBIN:
        return turn % replicas
    if policy == CACHE_AWARE:
        return _follow(sim, now, prompt, ids_from, ids)
    best, fewest = -1, 0
    for k in range(replicas):
        r = (turn + k) % replicas
        load = _unfinished(sim, r, now)
        if best < 0 or load < fewest:
            best, fewest = r, load
    return best


@compiled
def _unfinished(sim: Sim, r: int, now: float) -> int:
    replica = sim.replica[r]
    load = replica.running + replica.waiting + replica.in_front
    if replica.clock > now:  # the step that is still running at `now` has been accounted for already
        load += replica.last_finished
    return int(load)


@compiled
def _follow(sim: Sim, now: float, prompt: int, ids_from: int, ids: int) -> int:
    """cache_aware, as SGLang's router does it (0.3.2, `policies/cache_aware.rs`): to the replica that was sent the
    longest part of the prompt before, if that is enough of it and loads are not too unequal; else to the least loaded,
    of equals the first.

    What the router remembers is what it sent, not what replicas still cache; it forgets only after tens of millions
    of characters a replica, which is not simulated. Where several replicas were sent a prefix, SGLang's router takes
    any of them (a hash table's first), this one the first that was.
    """
    idlest, least = 0, _unfinished(sim, 0, now)
    most = least
    for r in range(1, len(sim.replica)):
        load = _unfinished(sim, r, now)
        most = max(most, load)
        if load < least:
            idlest, least = r, load
    best = idlest
    if most - least <= BALANCE_ABSOLUTE or most <= BALANCE_RELATIVE * least:
        sent, holder = 0, idlest
        for k in range(ids_from, ids_from + ids):
            i = sim.ids[k]
            if sim.id_holder[i] < 0:
                break
            sent, holder = min(sim.id_end[i], prompt), sim.id_holder[i]
        if sent > CACHE_THRESHOLD * prompt:
            best = holder
    for k in range(ids_from, ids_from + ids):
        if sim.id_holder[sim.ids[k]] < 0:
            sim.id_holder[sim.ids[k]] = best
    return best
