"""Messages of the three OpenAI APIs in one form, in which an answer and the same answer sent back are equal."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

_TEXTS = ("text", "input_text", "output_text", "refusal")


def canonical(message: dict[str, Any]) -> bytes:
    """Role, content and tool calls as bytes; not what clients change on the way: ids, reasoning, outer blanks."""
    role = str(message.get("role") or "user")
    parts = [role.encode(errors="replace"), content_text(message.get("content")).strip().encode(errors="replace")]
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            parts.append(f"{function.get('name')}({_arguments(function.get('arguments'))})".encode(errors="replace"))
    return b"\n".join(parts)


def content_text(content: Any) -> str:
    """Text of a message; images, audio and files are replaced by digests, since their bytes are no prompt tokens."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    pieces = []
    for part in content if isinstance(content, list) else [content]:
        text = (
            next((part[k] for k in ("text", "refusal") if isinstance(part.get(k), str)), None) if _text(part) else None
        )
        if text is None:
            text = part if isinstance(part, str) else blake2b(orjson.dumps(part), digest_size=16).hexdigest()
        pieces.append(text)
    return "\n".join(pieces)


def _text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXTS


def _arguments(arguments: Any) -> str:
    """Equal JSON as equal text."""
    try:
        value = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (orjson.JSONDecodeError, TypeError):
        return str(arguments)


def from_items(items: Any, instructions: Any = None) -> list[dict[str, Any]]:
    """Input or output items of the Responses API as chat messages, one for each item that a prompt shows."""
    messages: list[dict[str, Any]] = []
    if isinstance(instructions, str):
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role", "user"), "content": item.get("content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            messages.append({"role": "assistant", "content": None, "tool_calls": [{"function": function}]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
    return messages
