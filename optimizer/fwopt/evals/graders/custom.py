"""A function of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from fwopt.errors import InputError
from fwopt.evals.answers import Answer
from fwopt.evals.graders.base import Grade
from fwopt.spec.base import Frozen


class Custom(Frozen):
    """Calls `function(answer, expected)`: answer is a dict with `text` and `tool_calls`; it returns whether the answer
    is right, or a score from 0 to 1."""

    kind: Literal["custom"] = "custom"
    function: str
    """`module:function`; modules beside the eval set are found too."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        self._function()

    def grade(self, answer: Answer, expected: Any) -> Grade:
        given = asdict(answer) | {"tool_calls": [call.model_dump() for call in answer.tool_calls]}
        try:
            score = self._function()(given, expected)
        except Exception as error:
            raise InputError(f"grader {self.function} fails: {type(error).__name__}: {error}") from error
        if not isinstance(score, bool | int | float) or not 0 <= score <= 1:
            raise InputError(f"grader {self.function}: must return a bool or a score from 0 to 1, got {score!r}")
        return Grade(float(score))

    def _function(self) -> Callable[[dict[str, Any], Any], Any]:
        module, _, name = self.function.partition(":")
        if not module or not name:
            raise ValueError(f"function must be module:function, got '{self.function}'")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except Exception as error:
            raise ValueError(f"{module} cannot be imported: {type(error).__name__}: {error}") from None
        if not callable(found):
            raise ValueError(f"{module} has no function {name}")
        return found  # type: ignore[no-any-return]
