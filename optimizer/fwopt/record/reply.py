"""What came back, read along event by event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from fwopt.record.conversation import from_items
from fwopt.workload.formats.recorded import Api

_REASONING = ("reasoning_content", "reasoning")


@dataclass(slots=True)
class Reply:
    """One answer, complete or as far as it came."""

    api: Api
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    chunks: int = 0
    """Events with output: mostly one token each, so an estimate where no usage came."""
    finish_reason: str | None = None
    response_id: str | None = None
    ended: bool = False
    """The stream's own last event came."""
    failed: bool = False
    """The server reported an error in the stream."""
    text: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    """Index -> name and parts of the arguments."""
    items: list[dict[str, Any]] | None = None
    """Output items of the Responses API."""

    def event(self, data: bytes) -> bool:
        """Take one streamed event; True when it is nothing but the token counts."""
        if data == b"[DONE]":
            self.ended = True
            return False
        try:
            row = orjson.loads(data)
        except orjson.JSONDecodeError:
            return False
        if type(row) is not dict:
            return False
        if self.api == "responses":
            self._responses_event(row)
            return False
        if "error" in row:
            self.failed = True
        self._usage(row.get("usage"))
        choices = row.get("choices")
        if not choices:
            return isinstance(row.get("usage"), dict)
        for choice in choices:
            self._choice(choice, choice.get("delta"))
        return False

    def body(self, data: bytes) -> None:
        """Take a reply that came in one piece."""
        try:
            row = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if type(row) is not dict:
            return
        if self.api == "responses":
            self._response(row)
            return
        self._usage(row.get("usage"))
        for choice in row.get("choices") or ():
            self._choice(choice, choice.get("message"))

    def _choice(self, choice: dict[str, Any], message: Any) -> None:
        output = False
        if isinstance(choice.get("text"), str):
            self.text.append(choice["text"])
            output = bool(choice["text"])
        if isinstance(message, dict):
            content = message.get("content")
            if isinstance(content, str) and content:
                self.text.append(content)
                output = True
            output = output or any(message.get(name) for name in _REASONING)
            if message.get("tool_calls"):
                self._calls(message["tool_calls"])
                output = True
        self.chunks += output
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]

    def _calls(self, calls: list[dict[str, Any]]) -> None:
        for place, call in enumerate(calls):
            function = call.get("function") or {}
            known = self.calls.setdefault(call.get("index", place), [function.get("name") or ""])
            known.append(function.get("arguments") or "")

    def _usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _first(usage, "prompt_tokens", "input_tokens")
        self.output_tokens = _first(usage, "completion_tokens", "output_tokens")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        if isinstance(details, dict) and type(details.get("cached_tokens")) is int:
            self.cached_tokens = details["cached_tokens"]

    def _responses_event(self, row: dict[str, Any]) -> None:
        kind = str(row.get("type"))
        self.chunks += kind.endswith(".delta")
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self.ended, self.failed = True, kind == "response.failed"
            self._response(row.get("response"))
        elif kind == "error":
            self.failed = True

    def _response(self, row: Any) -> None:
        if not isinstance(row, dict):
            return
        self._usage(row.get("usage"))
        if isinstance(row.get("id"), str):
            self.response_id = row["id"]
        if isinstance(row.get("status"), str):
            self.finish_reason = row["status"]
        self.items = [item for item in row.get("output") or () if isinstance(item, dict)]

    def messages(self) -> list[dict[str, Any]]:
        """The answer as a client sends it back with its next turn."""
        if self.api == "responses":
            return from_items(self.items)
        calls = [{"function": {"name": name, "arguments": "".join(parts)}} for name, *parts in self.calls.values()]
        return [{"role": "assistant", "content": "".join(self.text), "tool_calls": calls}]

    def tool_calls(self) -> int:
        if self.api == "responses":
            return sum(item.get("type") == "function_call" for item in self.items or ())
        return len(self.calls)


def _first(usage: dict[str, Any], *names: str) -> int | None:
    return next((usage[name] for name in names if type(usage.get(name)) is int), None)
