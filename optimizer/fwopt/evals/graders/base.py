"""What every grader offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fwopt.evals.answers import Answer


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer is worth."""

    score: float
    """1: right, 0: wrong."""
    why: str | None = None
    """What was missed, short."""


RIGHT = Grade(1.0)


def wrong(why: str) -> Grade:
    return Grade(0.0, why if len(why) <= 160 else why[:157] + "...")


class Grades(Protocol):
    """One way to judge an answer. Its fields are the options that an eval line may give; it never knows which server
    answered."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        """ValueError, with the rule, for an expectation that no answer could be held against."""
        ...

    def grade(self, answer: Answer, expected: Any) -> Grade:
        """The same answer gets the same grade, whatever it holds."""
        ...
