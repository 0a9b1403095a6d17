"""Tool calls as models write them, for servers that do not parse them.

Formats are those of the models' own chat templates: Hermes and Qwen2.5/Qwen3 (`<tool_call>` around JSON), Qwen3-Coder
(`<function=` and `<parameter=` inside it), Mistral (`[TOOL_CALLS]` and a list), Llama 3.1 and later (bare JSON with
`parameters`, after `<|python_tag|>` or alone, several separated by `;`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from fwopt.spec.evals import Call

_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)\s*>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)\s*>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_PYTHON_TAG = "<|python_tag|>"


def calls_in(text: str) -> tuple[Call, ...]:
    """Calls in the order written; a call whose JSON is broken has no arguments. Nothing where no syntax is found."""
    if "<tool_call>" in text:
        return tuple(call for block in _BLOCK.findall(text) for call in _block(block))
    if "<function=" in text:
        return tuple(_functions(text))
    if _MISTRAL in text:
        return _mistral(text.partition(_MISTRAL)[2].strip())
    return tuple(_bare(text))


def _block(block: str) -> Iterator[Call]:
    if "<function=" in block:
        yield from _functions(block)
        return
    found = _json(block)
    for entry in found if isinstance(found, list) else [found]:
        yield _as_call(entry) or Call(name=_name_in(block), arguments=None)


def _functions(text: str) -> Iterator[Call]:
    for name, body in _FUNCTION.findall(text):
        yield Call(name=name, arguments={key: _value(value.strip("\n")) for key, value in _PARAMETER.findall(body)})


def _mistral(text: str) -> tuple[Call, ...]:
    if text.startswith("["):
        found = _json(text)
        calls = [_as_call(entry) for entry in found] if isinstance(found, list) else []
        return tuple(call for call in calls if call is not None) or (Call(name=_name_in(text), arguments=None),)
    name, _, arguments = text.partition("[ARGS]")
    found = _json(arguments)
    return (Call(name=name.strip(), arguments=found if isinstance(found, dict) else None),)


def _bare(text: str) -> Iterator[Call]:
    """JSON objects with a name and parameters, and nothing beside them."""
    rest = text.strip().removeprefix(_PYTHON_TAG).removesuffix("<|eom_id|>").removesuffix("<|eot_id|>").strip()
    if not rest.startswith(("{", "[")):
        return
    found = _json(rest)
    entries = found if isinstance(found, list) else [found] if found is not None else [_json(p) for p in _split(rest)]
    calls = [_as_call(entry) for entry in entries]
    if all(call is not None for call in calls):
        yield from (call for call in calls if call is not None)


def _split(text: str) -> list[str]:
    return re.split(r"(?<=\})\s*(?:;|\n)\s*(?=\{)", text)


def _as_call(entry: Any) -> Call | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    given = entry.get("arguments", entry.get("parameters"))
    if isinstance(given, str):
        given = _json(given)
    if "arguments" not in entry and "parameters" not in entry:
        return None
    return Call(name=entry["name"], arguments=given if isinstance(given, dict) else None)


def _json(text: str) -> Any:
    try:
        return orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return None


def _value(text: str) -> Any:
    """Parameters stand as plain text: JSON where they are JSON."""
    found = _json(text)
    return text if found is None and text.strip() != "null" else found


def _name_in(text: str) -> str:
    found = re.search(r'"name"\s*:\s*"([^"]*)"', text)
    return found[1] if found else ""
