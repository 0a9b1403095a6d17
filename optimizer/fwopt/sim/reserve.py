"""SGLang's admission: a share of the tokens that running sequences may still produce is kept free for them.

A request is admitted if its prompt and all the tokens that it may produce fit beside that reservation. The share
starts high, decays with every decode step, and is set anew from what was really produced when the cache runs out and
sequences are retracted. Once a request had to wait, nobody is admitted until a sequence ends. Facts and where they
stand in SGLang: docs/sglang-scheduling.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwopt.sim.jit import compiled
from fwopt.sim.state import Sim


@dataclass(frozen=True, slots=True)
class Reservation:
    """SGLang's constants; the defaults are those of 0.5.3 to 0.5.9."""

    first: float = 0.7
    """Share reserved at the start and whenever the server has been idle."""
    least: float = 0.7 * 0.14
    decay_steps: int = 600
    """Decode steps from the first share to the least."""
    most_tokens: int = 4096
    """No sequence reserves more."""
    retract_steps: int = 20
    """Tokens a sequence that are reserved beyond those produced when others had to be retracted."""


@compiled
def produced(sim: Sim, r: int, s: int) -> int:
    """Tokens of a decoding sequence so far."""
    return sim.slot[s].generated + sim.replica[r].counter - sim.slot[s].joined


@compiled
def may_produce(sim: Sim, s: int, so_far: int) -> int:
    return min(max(sim.slot[s].allowed - so_far, 0), sim.limits[0].reserve_most)


@compiled
def _share(sim: Sim, r: int) -> float:
    replica, limits = sim.replica[r], sim.limits[0]
    if replica.ratio_steps <= 0:
        return replica.ratio_base
    return max(replica.ratio_base - replica.ratio_steps * limits.ratio_decay, limits.ratio_least)


@compiled
def reset_share(sim: Sim, r: int) -> None:
    sim.replica[r].ratio_base, sim.replica[r].ratio_steps = sim.limits[0].ratio_first, 0


@compiled
def set_aside(sim: Sim, r: int) -> None:
    """Reserve for the sequences that decode, in the step that is being put together."""
    replica = sim.replica[r]
    tokens, s = 0, replica.run_head
    while s >= 0:
        if sim.slot[s].joined >= 0:
            tokens += may_produce(sim, s, produced(sim, r, s))
        s = sim.slot[s].next
    replica.reserved = _share(sim, r) * tokens


@compiled
def fits(sim: Sim, r: int, s: int, found_tokens: int, idle_blocks: int) -> bool:
    """Whether waiting sequence s may be admitted."""
    replica, limits, slot = sim.replica[r], sim.limits[0], sim.slot[s]
    if replica.running == 0:
        return True
    size = limits.block_size
    free = (limits.kv_blocks - replica.used - idle_blocks - limits.sequence_blocks) * size
    prompt = (slot.target - found_tokens + size - 1) // size * size
    return prompt + may_produce(sim, s, slot.generated) < free - replica.reserved - replica.reserved_new


@compiled
def victim(sim: Sim, r: int) -> int:
    """The decoding sequence to retract: fewest tokens produced, then longest prompt, then latest."""
    best, fewest, s = -1, 0, sim.replica[r].run_head
    while s >= 0:
        if sim.slot[s].joined >= 0:
            so_far = produced(sim, r, s)
            if best < 0 or so_far < fewest or (so_far == fewest and sim.slot[s].prompt >= sim.slot[best].prompt):
                best, fewest = s, so_far
        s = sim.slot[s].next
    return best


@compiled
def learn_share(sim: Sim, r: int) -> None:
    """Sequences had to be retracted: reserve what the others have shown to need."""
    replica = sim.replica[r]
    tokens, allowed, s = 0, 1, replica.run_head
    while s >= 0:
        if sim.slot[s].joined >= 0:
            tokens += produced(sim, r, s) + sim.limits[0].retract_steps
            allowed += sim.slot[s].allowed
        s = sim.slot[s].next
    replica.ratio_base = min(1.0, tokens / allowed)
    replica.ratio_steps = -1  # the step that retracts does not decay it
    replica.full = 0
