"""Steps in which a drafter guesses ahead: each sequence brings its own number of tokens and keeps its own.

As vLLM's `schedule()` and `update_from_output()`: a running sequence asks for one token and those guessed for it, cut
to what is left of the token budget; blocks for rejected tokens stay with the sequence. What is guessed and what comes
true is no assumption: every sequence goes by the steps of one reply that `fwopt speculation` divided, and on with
another where its own reply is longer. So sequences differ as replies do, and steps of one reply follow each other.
"""

from __future__ import annotations

from fwopt.sim.jit import compiled
from fwopt.sim.kv import take
from fwopt.sim.lookup import count_gaps
from fwopt.sim.sequence import blocks, budget_left, finish, leave, next_guess, preempt_last
from fwopt.sim.state import Sim


@compiled
def _growth(sim: Sim, s: int, tokens: int, ahead: int) -> int:
    """Blocks that a sequence lacks for `tokens` more."""
    slot, size = sim.slot[s], sim.limits[0].block_size
    return max(blocks(slot.prompt + slot.generated - 1 + tokens + ahead, size) - slot.held, 0)


@compiled
def schedule_guesses(sim: Sim, r: int) -> bool:
    """Serve every decoding sequence, in order of admission; True if someone had to give up his blocks."""
    replica, limits = sim.replica[r], sim.limits[0]
    gave_up = False
    s = replica.run_head
    while s >= 0:
        slot = sim.slot[s]
        slot.tokens = 0
        if slot.joined >= 0 and budget_left(sim, r) > 0:
            slot.tokens = min(1 + sim.proposed[slot.guess], budget_left(sim, r))
            need = _growth(sim, s, slot.tokens, limits.ahead)
            while need > limits.kv_blocks - replica.used:
                if replica.run_head == replica.run_tail:  # the only one: what was guessed goes beyond the cache
                    slot.tokens = 1
                    need = _growth(sim, s, 1, 0)
                    break
                gave_up = True
                last = replica.run_tail
                preempt_last(sim, r)
                if last == s:
                    return True
            take(sim, r, need)
            slot.held += need
            replica.step_decodes += 1
            replica.step_guessed += slot.tokens - 1
        s = slot.next
    return gave_up


@compiled
def keep_accepted(sim: Sim, r: int) -> None:
    """The step has run: every sequence in it keeps what came true, and the token that the model itself says next."""
    replica = sim.replica[r]
    s = replica.run_head
    while s >= 0:
        slot = sim.slot[s]
        following = slot.next
        if slot.joined >= 0 and slot.tokens > 0:
            kept = min(min(sim.accepted[slot.guess], slot.tokens - 1) + 1, slot.output - slot.generated)
            slot.generated += kept
            slot.fresh = kept
            replica.context_sum += kept
            count_gaps(sim, (replica.shown - slot.last) / kept, kept)  # as the client counts tokens of one event
            slot.last = replica.shown
            if slot.generated >= slot.output:
                finish(sim, r, s, leave(sim, r, s))
            else:
                next_guess(sim, s)
        elif slot.joined >= 0:
            slot.fresh = 0
        s = following
