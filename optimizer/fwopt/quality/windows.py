"""Stretches of text as tokens, each with its class, drawn from what was given by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError

LEAST_WINDOWS = 8
"""Below this an interval over windows says nothing."""
LEAST_TOKENS = 16
"""Shorter ends of a text are left out."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a class, as tokens."""

    label: str
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows one behind the other. The model reads a window from its beginning, knowing nothing before it."""

    tokens: NDArray[np.int64]
    lengths: tuple[int, ...]
    classes: tuple[str, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, i: int) -> slice:
        return slice(self.starts[i], self.starts[i] + self.lengths[i])

    @property
    def digest(self) -> str:
        seen = hashlib.sha256(self.tokens.tobytes())
        seen.update(repr((self.lengths, self.classes)).encode())
        return seen.hexdigest()[:16]


def cut(
    documents: Sequence[Document], *, prefix: Sequence[int], window: int, max_tokens: int, seed: int, vocabulary: int
) -> Windows:
    """Windows of `window` tokens, `prefix` before each; classes take turns until `max_tokens`, each in an order drawn
    by `seed`."""
    body = window - len(prefix)
    by_class: dict[str, list[Sequence[int]]] = {}
    for document in documents:
        pieces = [document.tokens[at : at + body] for at in range(0, len(document.tokens), body)]
        by_class.setdefault(document.label, []).extend(p for p in pieces if len(p) >= min(LEAST_TOKENS, body))
    chosen = _take_turns(by_class, max_tokens, len(prefix), seed)
    total = sum(len(document.tokens) for document in documents)
    if len(chosen) < LEAST_WINDOWS:
        raise InputError(
            f"the text gives {len(chosen)} windows of {window} tokens ({total:,} tokens, --max-tokens {max_tokens:,}); "
            f"at least {LEAST_WINDOWS} are needed: give more text, a shorter --window, or more --max-tokens"
        )
    rows = [np.array([*prefix, *piece], dtype=np.int64) for _, piece in chosen]
    tokens = np.concatenate(rows)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {int(tokens.max())}, and the model knows {vocabulary} (vocab_size); "
            "take the tokenizer.json that belongs to it"
        )
    lengths = tuple(len(row) for row in rows)
    starts = tuple(int(s) for s in np.cumsum((0, *lengths))[:-1])
    return Windows(tokens, lengths, tuple(label for label, _ in chosen), starts)


def _take_turns(
    by_class: dict[str, list[Sequence[int]]], max_tokens: int, extra: int, seed: int
) -> list[tuple[str, Sequence[int]]]:
    """In the order of the text again, so that equal choices are equal windows."""
    generator = np.random.default_rng(seed)
    queues = {label: list(generator.permutation(len(pieces))) for label, pieces in by_class.items()}
    taken: list[tuple[str, int]] = []
    left = max_tokens
    while any(queues.values()) and left > 0:
        for label, queue in queues.items():
            if queue and len(by_class[label][queue[0]]) + extra <= left:
                index = int(queue.pop(0))
                left -= len(by_class[label][index]) + extra
                taken.append((label, index))
            else:
                queue.clear()
    order = {label: place for place, label in enumerate(by_class)}
    taken.sort(key=lambda item: (order[item[0]], item[1]))
    return [(label, by_class[label][index]) for label, index in taken]
