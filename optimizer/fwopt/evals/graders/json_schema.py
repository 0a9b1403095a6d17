"""The answer is JSON that fits a schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from fwopt.evals.answers import Answer
from fwopt.evals.graders.base import RIGHT, Grade, wrong
from fwopt.spec.base import Frozen

_FENCED = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)


class JsonSchema(Frozen):
    """`expected`: a JSON Schema (draft 2020-12 unless `$schema` names another)."""

    kind: Literal["json-schema"] = "json-schema"
    fenced: bool = True
    """The JSON may stand in a Markdown code block."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        if not isinstance(expected, dict):
            raise ValueError("json-schema needs a schema, an object")
        try:
            validator_for(expected, default=_newest()).check_schema(expected)
        except SchemaError as error:
            raise ValueError(f"is no JSON Schema: {error.message}") from None

    def grade(self, answer: Answer, expected: Any) -> Grade:
        from jsonschema.validators import validator_for

        inside = _FENCED.match(answer.text) if self.fenced else None
        try:
            value = orjson.loads(inside[1] if inside else answer.text)
        except orjson.JSONDecodeError:
            return wrong(f"is no JSON: {answer.text[:60]!r}")
        errors = validator_for(expected, default=_newest())(expected).iter_errors(value)
        first = next(iter(sorted(errors, key=lambda error: list(map(str, error.absolute_path)))), None)
        if first is None:
            return RIGHT
        return wrong(f"{'.'.join(map(str, first.absolute_path)) or 'the value'}: {first.message}")


def _newest() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator
