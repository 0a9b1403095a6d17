"""Linked lists of slots (waiting, running) and the heap of sequence ends."""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.state import Sim


@compiled
def wait_at_end(sim: Sim, r: int, s: int) -> None:
    replica = sim.replica[r]
    sim.slot[s].next = -1
    if replica.wait_tail >= 0:
        sim.slot[replica.wait_tail].next = s
    else:
        replica.wait_head = s
    replica.wait_tail = s
    replica.waiting += 1


@compiled
def wait_at_front(sim: Sim, r: int, s: int) -> None:
    replica = sim.replica[r]
    sim.slot[s].next = replica.wait_head
    replica.wait_head = s
    if replica.wait_tail < 0:
        replica.wait_tail = s
    replica.waiting += 1


@compiled
def stop_waiting(sim: Sim, r: int) -> None:
    """Drop the head of the waiting queue."""
    replica = sim.replica[r]
    replica.wait_head = sim.slot[replica.wait_head].next
    if replica.wait_head < 0:
        replica.wait_tail = -1
    replica.waiting -= 1


@compiled
def start_running(sim: Sim, r: int, s: int) -> None:
    replica = sim.replica[r]
    sim.slot[s].prev = replica.run_tail
    sim.slot[s].next = -1
    if replica.run_tail >= 0:
        sim.slot[replica.run_tail].next = s
    else:
        replica.run_head = s
    replica.run_tail = s
    replica.running += 1


@compiled
def stop_running(sim: Sim, r: int, s: int) -> None:
    replica = sim.replica[r]
    p, n = sim.slot[s].prev, sim.slot[s].next
    if p >= 0:
        sim.slot[p].next = n
    else:
        replica.run_head = n
    if n >= 0:
        sim.slot[n].prev = p
    else:
        replica.run_tail = p
    replica.running -= 1


@compiled
def _sift_down(sim: Sim, r: int, at: int, key: int, s: int) -> None:
    keys, slots, count = sim.heap_key[r], sim.heap_slot[r], sim.replica[r].heap
    child = 2 * at + 1
    while child < count:
        if child + 1 < count and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[at], slots[at] = keys[child], slots[child]
        at, child = child, 2 * child + 1
    keys[at], slots[at] = key, s


@compiled
def _sift_up(sim: Sim, r: int, at: int, key: int, s: int) -> None:
    keys, slots = sim.heap_key[r], sim.heap_slot[r]
    while at > 0:
        parent = (at - 1) >> 1
        if keys[parent] <= key:
            break
        keys[at], slots[at] = keys[parent], slots[parent]
        at = parent
    keys[at], slots[at] = key, s


@compiled
def push_end(sim: Sim, r: int, key: int, s: int) -> None:
    """Sequence s ends when the replica's counter reaches `key`."""
    sim.replica[r].heap += 1
    _sift_up(sim, r, sim.replica[r].heap - 1, key, s)


@compiled
def pop_end(sim: Sim, r: int) -> int:
    """Slot of the sequence that ends first."""
    s = sim.heap_slot[r, 0]
    replica = sim.replica[r]
    replica.heap -= 1
    last = replica.heap
    if last > 0:
        _sift_down(sim, r, 0, sim.heap_key[r, last], sim.heap_slot[r, last])
    return s


@compiled
def drop_end(sim: Sim, r: int, s: int) -> None:
    """Remove sequence s (a preemption: rare, so a linear search will do)."""
    replica = sim.replica[r]
    at = 0
    while sim.heap_slot[r, at] != s:
        at += 1
    replica.heap -= 1
    last = replica.heap
    if at < last:
        key, moved = sim.heap_key[r, last], sim.heap_slot[r, last]
        if key < sim.heap_key[r, at]:
            _sift_up(sim, r, at, key, moved)
        else:
            _sift_down(sim, r, at, key, moved)
