"""The answer is the expected text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fwopt.evals.answers import Answer
from fwopt.evals.graders.base import RIGHT, Grade, wrong
from fwopt.spec.base import Frozen


class Exact(Frozen):
    """`expected`: the text, or a list of texts of which one must be answered."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = False
    strip: bool = True
    """White space before and after the answer does not count."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        texts = expected if isinstance(expected, list) else [expected]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("exact needs a text, or a list of texts")

    def grade(self, answer: Answer, expected: Any) -> Grade:
        texts = expected if isinstance(expected, list) else [expected]
        found = self._plain(answer.text)
        if any(found == self._plain(text) for text in texts):
            return RIGHT
        return wrong(f"answered {found[:60]!r}")

    def _plain(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.ignore_case else text
