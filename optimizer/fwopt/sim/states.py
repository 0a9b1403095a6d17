"""Linear attention under a prefix cache: a prefix is found only where a state was kept.

As vLLM's `mamba_cache_mode` align (`Scheduler._mamba_block_aligned_split`). A state is written where a chunk of a
prompt ends, so chunks end with whole blocks, one of them at the last place at which a prompt can be found again. The
states that are kept are that one and, of a prompt that shares more than it finds, the one where the two part (its
junction). Chunks thus leave some of the budget to others, and several prompts may be half computed at once.
"""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.state import Sim


@compiled
def chunk_end(sim: Sim, s: int, start: int, most: int) -> int:
    """Tokens up to the end of the next chunk of sequence s's prompt, which begins at `start` and has `most` at most;
    `start` if it has to wait for a larger share of the budget."""
    slot, size = sim.slot[s], sim.limits[0].block_size
    end, prompt_end = min(slot.target, start + most), max(slot.prompt, slot.target - 1)
    if not sim.limits[0].aligned or start >= prompt_end:
        return end
    if end < prompt_end:
        whole = end // size * size
        if whole > start or size <= sim.limits[0].budget:
            end = whole
    first = end
    if start < (slot.target - 1) // size * size < first:
        first = (slot.target - 1) // size * size
    if start % size > 0 and (start // size + 1) * size < first:
        first = (start // size + 1) * size
    if start < slot.junction < end:
        stop = start + (slot.junction - start) // size * size
        if start < stop < first:
            first = stop
    return max(first, start)


@compiled
def keep_state(sim: Sim, r: int, s: int, start: int) -> None:
    """A chunk of sequence s from `start` up to its `computed` tokens is scheduled: the states that it keeps.

    vLLM enters the one at the end of the prompt's last findable block again as long as the sequence holds it and its
    known tokens end within the next block: with the chunk after it and, where the next step is put together while that
    one runs, with the first token that is decoded.
    """
    replica, slot, limits = sim.replica[r], sim.slot[s], sim.limits[0]
    size, end = limits.block_size, slot.computed
    last = (slot.prompt - 1) // size * size
    if end == slot.junction or end == last:
        _enter(sim, r, s, end, replica.steps)
    elif end // size * size == last > 0:
        seen = slot.chunk_from if limits.late and slot.chunk_step == replica.steps - 1 else start
        decodes = limits.late and end == slot.target and slot.generated + 1 < slot.output
        if seen <= last:
            _enter(sim, r, s, last, replica.steps + (decodes and start <= last))
    slot.chunk_from, slot.chunk_step = start, replica.steps


@compiled
def _enter(sim: Sim, r: int, s: int, tokens: int, busy: int) -> None:
    """The state of sequence s after `tokens` is kept, and not found up to step `busy`."""
    slot = sim.slot[s]
    k, last = slot.ids_from, slot.ids_from + slot.ids
    while k < last and sim.id_end[sim.ids[k]] < tokens:
        k += 1
    if k == last:
        slot.state = tokens
    elif tokens > 0:
        sim.id_state[r, sim.ids[k]] = tokens
        sim.id_state_busy[r, sim.ids[k]] = busy


@compiled
def must_wait(sim: Sim, r: int, s: int, found: int, own: int) -> bool:
    """Whether the state that sequence s finds with its prefix is being kept in the step that is put together."""
    if found == 0 or own > 0:
        return False
    return sim.id_state_busy[r, sim.ids[sim.slot[s].ids_from + found - 1]] >= sim.replica[r].steps
