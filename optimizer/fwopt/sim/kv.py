"""KV blocks: what is referenced, what is only cached, and which cached block goes first.

As in vLLM's block pool: a block that nobody references stays findable by its prefix hash until it is
reused; blocks are reused in the order in which they were released, and a sequence releases its last
block first, a block that is not full before all others. Full blocks without a prefix id in the trace (generated text,
the rest of a prompt) wait in the same order, but only the sequence whose they were can find them again, when it was
preempted: *junk*.
"""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.state import Sim


@compiled
def _unlink(sim: Sim, r: int, i: int) -> None:
    p, n = sim.id_prev[r, i], sim.id_next[r, i]
    if p >= 0:
        sim.id_next[r, p] = n
    else:
        sim.replica[r].lru_head = n
    if n >= 0:
        sim.id_prev[r, n] = p
    else:
        sim.replica[r].lru_tail = p


@compiled
def _append(sim: Sim, r: int, i: int) -> None:
    replica = sim.replica[r]
    tail = replica.lru_tail
    sim.id_prev[r, i] = tail
    sim.id_next[r, i] = -1
    if tail >= 0:
        sim.id_next[r, tail] = i
    else:
        replica.lru_head = i
    replica.lru_tail = i
    replica.stamp += 1
    sim.id_stamp[r, i] = replica.stamp


@compiled
def _add_junk(sim: Sim, r: int, blocks: int) -> int:
    """Returns where they stand in the ring."""
    replica = sim.replica[r]
    size = sim.junk_stamp.shape[1]
    if replica.junk_count == size:  # full of entries that were taken back
        replica.cached -= sim.junk_blocks[r, replica.junk_head]
        replica.junk_head = (replica.junk_head + 1) % size
        replica.junk_count -= 1
    at = (replica.junk_head + replica.junk_count) % size
    replica.stamp += 1
    sim.junk_stamp[r, at] = replica.stamp
    sim.junk_blocks[r, at] = blocks
    replica.junk_count += 1
    replica.cached += blocks
    return at


@compiled
def take(sim: Sim, r: int, blocks: int) -> None:
    """Turn `blocks` free blocks into used ones, forgetting the longest released cache entries as needed.

    The caller has checked that so many are free.
    """
    replica = sim.replica[r]
    if sim.limits[0].prefix and sim.limits[0].evicting:
        clean = sim.limits[0].kv_blocks - replica.used - replica.cached
        while clean < blocks:
            head = replica.lru_head
            at = replica.junk_head
            if replica.junk_count > 0 and (head < 0 or sim.junk_stamp[r, at] < sim.id_stamp[r, head]):
                part = min(sim.junk_blocks[r, at], blocks - clean)
                sim.junk_blocks[r, at] -= part
                if sim.junk_blocks[r, at] == 0:
                    replica.junk_head = (at + 1) % sim.junk_stamp.shape[1]
                    replica.junk_count -= 1
            else:
                part = sim.id_blocks[head]
                _unlink(sim, r, head)
                sim.id_present[r, head] = 0
                if sim.limits[0].aligned:
                    sim.id_state[r, head] = 0
            replica.cached -= part
            clean += part
    replica.used += blocks
    replica.peak_used = max(replica.peak_used, replica.used)


@compiled
def _find_own(sim: Sim, r: int, s: int, tokens: int) -> int:
    """Blocks beyond `tokens` that sequence s left when it was preempted and that are still there, or that are stated
    to be found."""
    slot, size = sim.slot[s], sim.limits[0].block_size
    if slot.own == 0 or tokens // size < slot.own_from:
        return 0
    left = slot.own
    if slot.own_at >= 0:
        left = sim.junk_blocks[r, slot.own_at] if sim.junk_stamp[r, slot.own_at] == slot.own_stamp else 0
    return max(min(slot.own_from + left, (slot.target - 1) // size) - tokens // size, 0)


@compiled
def find_prefix(sim: Sim, r: int, s: int) -> tuple[int, int, int, int]:
    """(leading ids found, own blocks found after them, tokens that both save, KV blocks among them that nobody
    references).

    At least one token is always computed, so a fully cached prompt recomputes its last block.
    """
    slot = sim.slot[s]
    found, own, tokens, idle = 0, 0, 0, 0
    kept, kept_tokens, kept_idle = 0, 0, 0
    if sim.limits[0].prefix:
        size = sim.limits[0].block_size
        most = (slot.target - 1) // size * size
        while found < slot.ids:
            i = sim.ids[slot.ids_from + found]
            if sim.id_present[r, i] == 0 or tokens >= most:
                break
            end = sim.id_end[i] // size * size
            if sim.id_refs[r, i] == 0:
                idle += sim.id_blocks[i] - (end - min(end, most)) // size
            tokens = min(end, most)
            found += 1
            if sim.limits[0].aligned and 0 < sim.id_state[r, i] <= most:
                kept, kept_tokens, kept_idle = found, sim.id_state[r, i], idle
        own = _find_own(sim, r, s, tokens)
        if sim.limits[0].aligned and len(sim.stated) == 0:
            longest = tokens + own * size
            if tokens < slot.state <= longest:
                own = (slot.state - tokens) // size
            else:
                found, own, tokens, idle = kept, 0, kept_tokens, kept_idle
            slot.junction = longest if longest > tokens + own * size else 0
        tokens += own * size
        idle += own
    return found, own, tokens, idle


@compiled
def reference_found(sim: Sim, r: int, s: int, found: int, own: int, tokens: int) -> None:
    """Hold the found prefix for sequence s.

    A fully cached prompt's last block is computed anew: in a block of its own if others hold that one too, else in its
    place, so that an id that stands for several blocks is held whole.
    """
    slot, replica, size = sim.slot[s], sim.replica[r], sim.limits[0].block_size
    slot.shared = tokens // size - own
    if own > 0 and slot.own_at >= 0:
        sim.junk_blocks[r, slot.own_at] -= own
        replica.cached -= own
        replica.used += own
    elif own > 0:
        take(sim, r, own)
    slot.own = 0
    for k in range(found):
        i = sim.ids[slot.ids_from + k]
        if sim.id_refs[r, i] == 0:
            again = max(sim.id_end[i] // size - tokens // size, 0)
            _unlink(sim, r, i)
            replica.cached -= sim.id_blocks[i]
            replica.used += sim.id_blocks[i] - again  # `again` are taken with the chunk that computes them
            slot.shared += again
        sim.id_refs[r, i] += 1
    replica.peak_used = max(replica.peak_used, replica.used)
    slot.referenced = found


@compiled
def _share_copy(sim: Sim, r: int, s: int, i: int) -> None:
    """Sequence s has computed a second copy of id i, which is found as long as one of them is there: of two that
    nobody references, the older counts as junk."""
    replica, slot, limits = sim.replica[r], sim.slot[s], sim.limits[0]
    if sim.id_refs[r, i] == 0:
        _unlink(sim, r, i)
        replica.cached -= sim.id_blocks[i]
        if limits.evicting and sim.id_blocks[i] > 0:
            _add_junk(sim, r, sim.id_blocks[i])
        slot.shared += sim.id_blocks[i]
    sim.id_refs[r, i] += 1
    slot.referenced += 1


@compiled
def publish(sim: Sim, r: int, s: int) -> None:
    """Make the prompt blocks computed so far findable (vLLM does so when a chunk is scheduled)."""
    slot = sim.slot[s]
    if not sim.limits[0].prefix:
        return
    while slot.referenced < slot.sharing:
        i = sim.ids[slot.ids_from + slot.referenced]
        if sim.id_end[i] > slot.computed:
            break
        if sim.id_present[r, i] and sim.limits[0].aligned:
            _share_copy(sim, r, s, i)
            continue
        if sim.id_present[r, i]:  # a second copy (a fully cached prompt's last block): never merged, stays private
            slot.sharing = slot.referenced
            break
        sim.id_present[r, i] = 1
        sim.id_refs[r, i] = 1
        slot.shared += sim.id_blocks[i]
        slot.referenced += 1


@compiled
def release(sim: Sim, r: int, s: int, held_blocks: int, full_blocks: int) -> None:
    """Sequence s gives up `held_blocks` blocks, of which `full_blocks` are full of its tokens: private ones first, then
    its prefix from the end."""
    slot, replica, limits = sim.slot[s], sim.replica[r], sim.limits[0]
    replica.used -= held_blocks - slot.shared
    if limits.prefix:
        slot.own_from, slot.own = slot.shared, max(full_blocks - slot.shared, 0)
        if limits.evicting and limits.sequence_blocks > 0:
            _add_junk(sim, r, limits.sequence_blocks)
        if limits.evicting and slot.own > 0:
            slot.own_at = _add_junk(sim, r, slot.own)
            slot.own_stamp = replica.stamp
        if limits.reserving:
            slot.own = 0
        for k in range(slot.referenced - 1, -1, -1):
            i = sim.ids[slot.ids_from + k]
            sim.id_refs[r, i] -= 1
            if sim.id_refs[r, i] == 0:
                replica.used -= sim.id_blocks[i]
                replica.cached += sim.id_blocks[i]
                _append(sim, r, i)
    slot.referenced, slot.shared, slot.sharing = 0, 0, slot.ids
