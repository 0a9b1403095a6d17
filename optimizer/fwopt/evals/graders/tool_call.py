"""The answer calls the expected tools: names, arguments, order, several in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fwopt.evals.answers import Answer
from fwopt.evals.graders.base import RIGHT, Grade, wrong
from fwopt.evals.graders.matching import assignable, check_rules, matches
from fwopt.spec.base import Frozen
from fwopt.spec.evals import Call


class ToolCall(Frozen):
    """`expected`: a call `{"name": ..., "arguments": {...}}`, or a list of calls that must all come in one answer; an
    empty list: no tool may be called. In place of an argument's value may stand a rule (docs/evals.md)."""

    kind: Literal["tool-call"] = "tool-call"
    ordered: bool = False
    """The calls must come in the order given."""
    arguments: Literal["exact", "given", "ignore"] = "exact"
    """`exact`: these and no others; `given`: these, others may stand beside them; `ignore`: the name alone counts."""

    def check(self, expected: Any, tools: Sequence[dict[str, Any]]) -> None:
        known = {tool.get("function", {}).get("name") for tool in tools}
        for call in _listed(expected):
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                raise ValueError('tool-call needs calls like {"name": "get_weather", "arguments": {"city": "Paris"}}')
            unknown = call.keys() - {"name", "arguments"}
            if unknown or not isinstance(call.get("arguments", {}), dict):
                raise ValueError(f"a call has a name and arguments, an object; got {call!r}")
            if call["name"] not in known:
                names = ", ".join(map(str, known)) or "it has none"
                raise ValueError(f"{call['name']} is none of the line's tools ({names})")
            check_rules(call.get("arguments", {}))

    def grade(self, answer: Answer, expected: Any) -> Grade:
        wanted, found = _listed(expected), answer.tool_calls
        if len(found) != len(wanted):
            names = ", ".join(call.name for call in found) or "nothing"
            return wrong(f"calls {names} where {len(wanted)} calls were expected")
        if sorted(call.name for call in found) != sorted(call["name"] for call in wanted):
            return wrong(f"calls {', '.join(call.name for call in found)}")
        broken = next((call.name for call in found if call.arguments is None), None)
        if broken is not None and self.arguments != "ignore":
            return wrong(f"the arguments of {broken} are no JSON object")
        if self.ordered:
            kept = all(self._fits(call, want) for call, want in zip(found, wanted, strict=True))
            return RIGHT if kept else wrong("another order or other arguments" + _shown(found))
        if assignable(len(wanted), lambda want, call: self._fits(found[call], wanted[want])):
            return RIGHT
        return wrong("other arguments" + _shown(found))

    def _fits(self, call: Call, want: dict[str, Any]) -> bool:
        if call.name != want["name"]:
            return False
        if self.arguments == "ignore":
            return True
        given, arguments = want.get("arguments", {}), call.arguments or {}
        if self.arguments == "exact" and arguments.keys() != given.keys():
            return False
        return all(key in arguments and matches(arguments[key], value) for key, value in given.items())


def _listed(expected: Any) -> list[Any]:
    return expected if isinstance(expected, list) else [expected]


def _shown(found: Sequence[Call]) -> str:
    return ": " + "; ".join(f"{call.name} {call.arguments}" for call in found)
