"""Replies walked through step by step, as a server with this drafter would have given them.

Verification keeps what the model would have said anyway, so the reply is the same with any drafter and only its
division into steps differs: a proposed token is accepted if it is the reply's next one. At temperature 0 that is what
an engine does. With sampling, an engine accepts a token that was proposed for certain with the model's own probability
of it, which is that of the sampled reply having it there: recorded replies then give the same rate on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.quality.speculation.drafting import Drafting
from fwopt.quality.statistics import Bootstrap
from fwopt.spec.speculation import AcceptanceFigures, StepsTaken


@dataclass(frozen=True, slots=True)
class Reply:
    """One request. `beyond`: what the model would go on with after the end, where that is known: the last step's draft
    may reach there."""

    label: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    beyond: tuple[int, ...] = ()


def steps(reply: Reply, drafting: Drafting) -> Iterator[tuple[int, int]]:
    """(proposed, accepted) of each decode step. The first token is prefill's, and no draft comes before it."""
    whole = [*reply.prompt, *reply.tokens, *reply.beyond]
    at, end = len(reply.prompt) + 1, len(reply.prompt) + len(reply.tokens)
    while at < end:
        proposed = drafting.propose(whole[:at])
        accepted = 0
        while accepted < len(proposed) and at + accepted < len(whole) and proposed[accepted] == whole[at + accepted]:
            accepted += 1
        yield len(proposed), accepted
        at += accepted + 1


@dataclass(frozen=True, slots=True)
class Walked:
    """Steps of all replies in a row."""

    reply: NDArray[np.int64]
    proposed: NDArray[np.int64]
    accepted: NDArray[np.int64]

    @classmethod
    def of(cls, found: Sequence[Sequence[tuple[int, int]]]) -> Walked:
        pairs = np.array([pair for own in found for pair in own], dtype=np.int64).reshape(-1, 2)
        reply = np.repeat(np.arange(len(found)), [len(own) for own in found])
        return cls(reply, pairs[:, 0], pairs[:, 1])

    def taken(self) -> StepsTaken:
        lengths = np.unique_counts(self.reply).counts
        return StepsTaken(
            lengths=tuple(lengths.tolist()),
            proposed=tuple(self.proposed.tolist()),
            accepted=tuple(self.accepted.tolist()),
        )

    def of_replies(self, which: NDArray[np.bool_]) -> Walked:
        keep = which[self.reply]
        return Walked(self.reply[keep], self.proposed[keep], self.accepted[keep])


def figures(walked: Walked, tokens: int, bootstrap: Bootstrap) -> AcceptanceFigures:
    """`tokens`: proposed at most. Intervals are over replies: steps of one depend on each other."""
    drafted = walked.proposed > 0
    accepted, blocks = walked.accepted[drafted].astype(np.float64), walked.reply[drafted]
    length = bootstrap.mean(1.0 + accepted, blocks) if len(accepted) else None
    at_least = tuple(bootstrap.mean((accepted > i).astype(np.float64), blocks) for i in range(tokens)) if length else ()
    return AcceptanceFigures(
        replies=len(np.unique(walked.reply)),
        steps=len(walked.reply),
        drafts=int(drafted.sum()),
        draft_tokens=int(walked.proposed.sum()),
        accepted_tokens=int(walked.accepted.sum()),
        acceptance_length=length,
        by_position=at_least,
        tokens_per_step=bootstrap.mean(1.0 + walked.accepted.astype(np.float64), walked.reply),
        steps_by_tokens=tuple(int(n) for n in np.bincount(walked.accepted, minlength=tokens + 1)),
    )
