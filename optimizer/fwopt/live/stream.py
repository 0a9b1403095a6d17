"""Server-sent events of the completions and chat APIs, parsed from bytes as they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


class StreamError(Exception):
    """The stream is not what the API promises (`malformed`), or the server says in it that it failed."""

    def __init__(self, text: str, *, malformed: bool) -> None:
        super().__init__(text)
        self.malformed = malformed


@dataclass(slots=True)
class Usage:
    """The server's own token counts."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


@dataclass(slots=True)
class Event:
    """What one server-sent event says."""

    carries_tokens: bool = False
    carries_choice: bool = False
    usage: Usage | None = None
    finish_reason: str | None = None


class EventParser:
    """Cuts a byte stream into events."""

    __slots__ = ("_rest", "chat", "done")

    def __init__(self, *, chat: bool) -> None:
        self.chat, self.done = chat, False
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """Events that are complete now; raises StreamError."""
        text = self._rest + data if self._rest else data
        if b"\r" in text:  # a CR at the very end may be half of a CRLF
            held = text[-1:] if text.endswith(b"\r") else b""
            text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *whole, self._rest = text.split(b"\n\n")
        events = []
        for block in whole:
            payload = _payload(block)
            if payload is None or self.done:
                continue
            if payload == b"[DONE]":
                self.done = True
            else:
                events.append(self._event(payload))
        return events

    @property
    def unfinished(self) -> bytes:
        """Bytes of an event that never ended."""
        return self._rest.strip()

    def _event(self, payload: bytes) -> Event:
        try:
            message: Any = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise StreamError(f"an event is no JSON: {_shown(payload)}", malformed=True) from None
        if type(message) is not dict:
            raise StreamError(f"an event is no JSON object: {_shown(payload)}", malformed=True)
        if message.get("error") is not None:
            raise StreamError(f"error event: {_shown(orjson.dumps(message['error']))}", malformed=False)
        event = Event()
        choices = message.get("choices")
        usage = message.get("usage")
        if usage is not None:
            event.usage = _usage(usage, payload)
        if not choices:
            if choices is None and usage is None:
                raise StreamError(f"an event has neither choices nor usage: {_shown(payload)}", malformed=True)
            return event
        try:
            choice = choices[0]
            event.carries_choice, event.finish_reason = True, choice.get("finish_reason")
            event.carries_tokens = _chat_tokens(choice) if self.chat else _completion_tokens(choice)
        except (AttributeError, KeyError, TypeError, IndexError):
            raise StreamError(f"choices are not as the API has them: {_shown(payload)}", malformed=True) from None
        return event


def _payload(block: bytes) -> bytes | None:
    """The data of one event; None when it has none (comments, keep-alives)."""
    if b"\n" not in block and block.startswith(b"data: "):
        return block[6:]
    data = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"error":  # older llama.cpp servers
            raise StreamError(f"error event: {_shown(value)}", malformed=False)
        elif line and name not in (b"", b"event", b"id", b"retry"):
            raise StreamError(f"no server-sent event: {_shown(line)}", malformed=True)
    return b"\n".join(data) if data else None


def _completion_tokens(choice: dict[str, Any]) -> bool:
    """A closing event without text repeats no token; one without text before the end is a token that shows nothing."""
    return bool(choice["text"]) or choice.get("finish_reason") is None


def _chat_tokens(choice: dict[str, Any]) -> bool:
    """The opening event only names the role."""
    delta = choice["delta"]
    if any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls")):
        return True
    return choice.get("finish_reason") is None and "role" not in delta


def _usage(usage: Any, payload: bytes) -> Usage:
    try:
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        return Usage(prompt, completion, None if cached is None else int(cached))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StreamError(f"usage is not as the API has it: {_shown(payload)}", malformed=True) from None


def _shown(data: bytes) -> str:
    text = data[:300].decode("utf-8", "replace")
    return text + ("…" if len(data) > 300 else "")
