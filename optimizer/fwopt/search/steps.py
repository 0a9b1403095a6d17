"""Searches that ask one question at a time, run side by side so that every round is one batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
R = TypeVar("R")


def lockstep(searches: Sequence[Generator[Q, A, R]], answer: Callable[[list[tuple[int, Q]]], list[A]]) -> list[R]:
    """Advance all searches together: `answer` gets every open (search index, question), in order."""
    results: dict[int, R] = {}
    open_questions: dict[int, Q] = {}
    for index, search in enumerate(searches):
        _advance(index, lambda search=search: next(search), open_questions, results)  # type: ignore[misc]
    while open_questions:
        batch = sorted(open_questions.items())
        open_questions = {}
        for (index, _), reply in zip(batch, answer(batch), strict=True):
            search = searches[index]
            _advance(index, lambda search=search, reply=reply: search.send(reply), open_questions, results)  # type: ignore[misc]
    return [results[i] for i in range(len(searches))]


def _advance(index: int, step: Callable[[], Q], questions: dict[int, Q], results: dict[int, R]) -> None:
    try:
        questions[index] = step()
    except StopIteration as done:
        results[index] = done.value


def fewest(counts: Sequence[int]) -> Generator[int, bool, int | None]:
    """Smallest of the ascending `counts` that suffices, if the largest does; asks whether each probe does."""
    if not (yield counts[-1]):
        return None
    low, high = -1, len(counts) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if (yield counts[middle]):
            high = middle
        else:
            low = middle
    return counts[high]
