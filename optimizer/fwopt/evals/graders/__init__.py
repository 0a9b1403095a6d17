"""Graders: one small file each, one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fwopt.evals.graders.base import Grade, Grades
from fwopt.evals.graders.custom import Custom
from fwopt.evals.graders.exact import Exact
from fwopt.evals.graders.json_schema import JsonSchema
from fwopt.evals.graders.numeric import Numeric
from fwopt.evals.graders.regex import Regex
from fwopt.evals.graders.tool_call import ToolCall

__all__ = ["GRADERS", "Grade", "Grader", "Grades"]

Grader = Annotated[Exact | Regex | Numeric | JsonSchema | ToolCall | Custom, Field(discriminator="kind")]
GRADERS: dict[str, type[Grades]] = {
    "exact": Exact,
    "regex": Regex,
    "numeric": Numeric,
    "json-schema": JsonSchema,
    "tool-call": ToolCall,
    "custom": Custom,
}
