"""Room for the next part of an endless trace: slots as many as are needed at once, prefix ids only while they matter.

A trace of any length may name any number of prefix ids, but a simulation can only ever meet again those that some
replica still caches or that a request in flight carries. Before each part the others are forgotten and the rest
renumbered, so memory follows the size of the caches, not the length of the trace.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.sim.state import DONE, SLOT, Sim
from fwopt.sim.tables import id_lengths
from fwopt.workload.columns import Workload


def in_flight(sim: Sim) -> int:
    return len(sim.slot) - int(sim.free_slots[0])


def with_room(sim: Sim, requests: int) -> Sim:
    """The same simulation with free slots for `requests` more."""
    have = len(sim.slot)
    missing = in_flight(sim) + requests - have
    if missing <= 0:
        return sim
    height = int(sim.free_slots[0])
    free = np.concatenate(([height + missing], sim.free_slots[1 : height + 1], np.arange(have, have + missing)))
    return sim._replace(
        slot=np.concatenate((sim.slot, np.zeros(missing, dtype=SLOT))),
        free_slots=np.concatenate((free, np.zeros(have - height, dtype=np.int64))),
        done=np.zeros(have + missing, dtype=DONE),
    )


def _carried(sim: Sim) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Slots in flight, and their prefix ids back to back."""
    busy = np.ones(len(sim.slot), dtype=bool)
    busy[sim.free_slots[1 : sim.free_slots[0] + 1]] = False
    slots = np.flatnonzero(busy)
    counts = sim.slot["ids"][slots]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return slots, sim.ids[np.repeat(sim.slot["ids_from"][slots], counts) + within]


def with_ids(
    sim: Sim, known: NDArray[np.int64], part: Workload, ids: NDArray[np.int32]
) -> tuple[Sim, NDArray[np.int64]]:
    """The simulation ready for a part of the trace whose accepted requests have the trace's prefix ids `ids`, and the
    trace's name of every id that it knows now.

    `known[i]` is the trace's name of id i in `sim`, ascending. The ids of the part follow those carried by requests
    in flight in the new `sim.ids`.
    """
    slots, carried = _carried(sim)
    alive: NDArray[np.bool_] = np.asarray(sim.id_present.any(axis=0))  # a referenced id is present too
    alive[carried] = True
    named = known[alive]
    now = np.union1d(named, part.block_ids).astype(np.int64)
    at = np.searchsorted(now, named)
    renumbered = np.full(len(known) + 1, -1, dtype=np.int64)  # the last entry: -1 stays -1
    renumbered[:-1][alive] = at
    end, blocks = _lengths(sim, part, now, at, alive)
    counts = sim.slot["ids"][slots]
    sim.slot["ids_from"][slots] = np.cumsum(counts) - counts
    for end_of_list in ("lru_head", "lru_tail"):
        sim.replica[end_of_list] = renumbered[sim.replica[end_of_list]]

    def moved(old: NDArray[Any], empty: int = 0) -> Any:
        new = np.full((len(sim.replica), len(now)), empty, dtype=old.dtype)
        new[:, at] = old[:, alive]
        return new

    return sim._replace(
        ids=np.concatenate((renumbered[carried], np.searchsorted(now, ids))).astype(np.int32),
        id_end=end,
        id_blocks=blocks,
        id_holder=np.full(len(now), -1, dtype=np.int16),
        id_present=moved(sim.id_present),
        id_refs=moved(sim.id_refs),
        id_stamp=moved(sim.id_stamp),
        id_prev=moved(renumbered[sim.id_prev].astype(np.int32), -1),
        id_next=moved(renumbered[sim.id_next].astype(np.int32), -1),
    ), now


def _lengths(
    sim: Sim, part: Workload, now: NDArray[np.int64], at: NDArray[np.int64], alive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """id_end and id_blocks; an id that is still known keeps the length with which its blocks were counted."""
    local = replace(part, block_ids=np.searchsorted(now, part.block_ids).astype(np.int32))
    both = np.zeros((2, len(now)), dtype=np.int64)
    fresh = id_lengths(local, int(sim.limits["block_size"][0]))
    for row, new, old in zip(both, fresh, (sim.id_end, sim.id_blocks), strict=True):
        row[: len(new)] = new
        row[at] = old[alive]
    return both[0], both[1]
