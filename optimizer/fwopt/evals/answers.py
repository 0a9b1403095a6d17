"""What a server answered, as graders see it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from fwopt.evals.tool_syntax import calls_in
from fwopt.spec.evals import Call

_THOUGHT = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what a server parsed of it, or what its text holds where no server did."""

    text: str
    """Without a leading block of thought."""
    tool_calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def answer_of(response: Any) -> Answer:
    """An answer of /v1/chat/completions or /v1/completions; ValueError when it is none."""
    try:
        choice = response["choices"][0]
        message = choice.get("message")
        text = (message.get("content") if message is not None else choice["text"]) or ""
        parsed = (message.get("tool_calls") if message is not None else None) or ()
        calls = tuple(_call(entry["function"]) for entry in parsed)
        usage = response.get("usage") or {}
        text = _THOUGHT.sub("", text) if isinstance(text, str) else _parts(text)
        return Answer(
            text=text,
            tool_calls=calls or calls_in(text),
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"no OpenAI-compatible answer ({type(error).__name__} {error}): {str(response)[:120]}"
        ) from None


def _call(function: dict[str, Any]) -> Call:
    given = function.get("arguments")
    try:
        arguments = orjson.loads(given or "{}") if isinstance(given, str) or given is None else given
    except orjson.JSONDecodeError:
        arguments = None
    return Call(name=str(function["name"]), arguments=arguments if isinstance(arguments, dict) else None)


def _parts(content: list[dict[str, Any]]) -> str:
    """Some servers answer in parts."""
    return _THOUGHT.sub("", "".join(part.get("text", "") for part in content))
