"""Which request continues which: its prompt extends the other's prompt and reply."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from fwopt.record.asked import Asked
from fwopt.record.conversation import canonical
from fwopt.record.key import PrefixKey
from fwopt.record.prefix import BLOCK_BYTES
from fwopt.record.reply import Reply

KEPT = 100_000
"""Conversations remembered, those that spoke last: about 30 MB."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A request that later ones may continue."""

    id: str
    session: str
    file: int
    """Number of the file its line lies in."""


class Sessions:
    """Only keyed digests are kept, never a message."""

    def __init__(self, key: PrefixKey, kept: int = KEPT) -> None:
        self._key, self._kept = key, kept
        self._ends: OrderedDict[Hashable, Turn] = OrderedDict()

    def states(self, asked: Asked, text_blocks: list[int] | None) -> list[Hashable]:
        """Where the conversation stood after each message, or after each block of a completion's text."""
        if asked.messages is not None:
            return self._after(self._start(asked), asked.messages)
        return [("text", asked.model, block) for block in text_blocks or ()]

    def _start(self, asked: Asked) -> bytes:
        return self._key.message(b"", f"{asked.model}\n{asked.lora}".encode(errors="replace"))

    def _after(self, state: bytes, messages: list[dict[str, object]]) -> list[Hashable]:
        states: list[Hashable] = []
        for message in messages:
            state = self._key.message(state, canonical(message))
            states.append(state)
        return states

    def parent(self, asked: Asked, states: list[Hashable]) -> Turn | None:
        """The latest turn that this request goes on from."""
        if asked.continues is not None:
            return self._ends.get(("response", asked.continues))
        ends = reversed(states[:-1]) if asked.messages is not None else reversed(states)
        return next((self._ends[state] for state in ends if state in self._ends), None)

    def remember(self, asked: Asked, states: list[Hashable], reply: Reply, turn: Turn) -> None:
        """After the reply: the turn's own states, its messages and what came back."""
        if reply.response_id is not None:
            self._keep(("response", reply.response_id), turn)
        if asked.messages is not None and asked.continues is None:
            last = states[-1] if states else self._start(asked)
            assert isinstance(last, bytes)
            ends = self._after(last, reply.messages())
            if ends:
                self._keep(ends[-1], turn)
        elif asked.text is not None:
            self._keep_text(asked, asked.text + "".join(reply.text), turn)

    def _keep_text(self, asked: Asked, text: str, turn: Turn) -> None:
        """A completion's end, known to the last whole block; that must lie in the reply, else a mere repetition of the
        prompt would look like its continuation."""
        data = text.encode(errors="replace")
        whole = len(data) // BLOCK_BYTES * BLOCK_BYTES
        if whole > len((asked.text or "").encode(errors="replace")):
            hasher = self._key.blocks()
            hasher.update(data[:whole])
            self._keep(("text", asked.model, int.from_bytes(hasher.digest(), "little")), turn)

    def _keep(self, state: Hashable, turn: Turn) -> None:
        self._ends[state] = turn
        self._ends.move_to_end(state)
        if len(self._ends) > self._kept:
            self._ends.popitem(last=False)
