"""A pattern is found in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from fwopt.evals.answers import Answer
from fwopt.evals.graders.base import RIGHT, Grade, wrong
from fwopt.spec.base import Frozen


class Regex(Frozen):
    """`expected`: a pattern in Python's syntax."""

    kind: Literal["regex"] = "regex"
    ignore_case: bool = False
    whole: bool = False
    """The whole answer, without white space around it, must match; else any part of it."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        if not isinstance(expected, str):
            raise ValueError("regex needs a pattern")
        try:
            self._compiled(expected)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None

    def grade(self, answer: Answer, expected: Any) -> Grade:
        pattern = self._compiled(expected)
        found = pattern.fullmatch(answer.text.strip()) if self.whole else pattern.search(answer.text)
        return RIGHT if found else wrong(f"no match in {answer.text[:60]!r}")

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        return re.compile(pattern, re.IGNORECASE if self.ignore_case else 0)
