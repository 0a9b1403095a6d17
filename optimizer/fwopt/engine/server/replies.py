"""Answers as OpenAI's API words them."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from fwopt.engine.messages import Counters


@dataclass(slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Form:
    """How one request's answer is dressed."""

    chat: bool
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def _envelope(self, object_: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": object_,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def whole(self, text: str, reason: str, usage: Usage) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        return self._envelope(kind, [choice]) | {"usage": usage.body()}

    def first(self) -> bytes | None:
        """Chat streams begin by naming the role."""
        if not self.chat:
            return None
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return event(self._envelope("chat.completion.chunk", [choice]))

    def part(self, text: str, reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.chat:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        return event(self._envelope("chat.completion.chunk" if self.chat else "text_completion", [choice]))

    def usage(self, usage: Usage) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event(self._envelope(kind, []) | {"usage": usage.body()})


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"

_METRICS: tuple[tuple[str, str, str], ...] = (
    ("running", "gauge", "Requests being computed."),
    ("waiting", "gauge", "Requests that wait for admission."),
    ("kv_blocks", "gauge", "KV-cache blocks."),
    ("kv_blocks_used", "gauge", "KV-cache blocks held by requests."),
    ("steps", "counter", "Engine steps."),
    ("preemptions", "counter", "Requests preempted."),
    ("prompt_tokens", "counter", "Prompt tokens of admitted requests."),
    ("cached_tokens", "counter", "Prompt tokens found in the prefix cache."),
    ("output_tokens", "counter", "Tokens generated."),
    ("finished", "counter", "Requests that ended by themselves."),
    ("step_seconds", "counter", "Time spent in steps."),
)


def prometheus(counters: Counters) -> str:
    lines = []
    for name, kind, text in _METRICS:
        full = f"fwopt_{name}" + ("_total" if kind == "counter" else "")
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {getattr(counters, name)}"]
    return "\n".join(lines) + "\n"
