"""A number in the answer is the expected one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from fwopt.evals.answers import Answer
from fwopt.evals.graders.base import RIGHT, Grade, wrong
from fwopt.spec.base import Frozen

_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\d)")


class Numeric(Frozen):
    """`expected`: a number. Of several numbers in the answer the last one counts, unless `pick` says otherwise."""

    kind: Literal["numeric"] = "numeric"
    absolute: Annotated[float, Field(ge=0)] = 0.0
    """May be off by so much."""
    relative: Annotated[float, Field(ge=0)] = 1e-9
    """May be off by this share of the expected number."""
    pick: Literal["last", "first", "only"] = "last"
    """`only`: an answer with several numbers is wrong."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        if isinstance(expected, bool) or not isinstance(expected, int | float) or not math.isfinite(expected):
            raise ValueError("numeric needs a finite number")

    def grade(self, answer: Answer, expected: Any) -> Grade:
        numbers = numbers_in(answer.text)
        if not numbers:
            return wrong(f"no number in {answer.text[:60]!r}")
        if self.pick == "only" and len(numbers) > 1:
            return wrong(f"{len(numbers)} numbers in the answer")
        found = numbers[0] if self.pick == "first" else numbers[-1]
        close = math.isclose(found, expected, rel_tol=0, abs_tol=max(self.absolute, self.relative * abs(expected)))
        return RIGHT if close else wrong(f"answered {found:g}")


def numbers_in(text: str) -> list[float]:
    """In order; thousands may be separated by commas."""
    return [float(found.replace(",", "").replace("\u2212", "-")) for found in _NUMBER.findall(text)]
