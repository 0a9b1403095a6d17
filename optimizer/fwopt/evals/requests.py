"""What is sent for an item: greedy, whole answers, nothing that makes two servers answer differently."""

from __future__ import annotations

from typing import Any

import orjson

from fwopt.errors import InputError
from fwopt.evals.items import EvalItem, EvalSet
from fwopt.live.endpoint import Endpoint
from fwopt.spec.evals import EvalSettings

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_TOOL_PROMPT = """You can call these tools:
<tools>
{tools}
</tools>
To call a tool, answer with one block for each call, and nothing else:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def check_sendable(asked: EvalSet, settings: EvalSettings) -> None:
    """InputError for items that the chosen API cannot carry."""
    if settings.api == "chat":
        return
    for item in asked.items:
        if item.messages is not None or (item.tools and settings.tools == "server"):
            what = "messages" if item.messages is not None else "tools"
            raise InputError(
                f"{asked.name}: item {item.name} has {what}, which the completions API does not take; use --api chat"
            )


def body_of(item: EvalItem, endpoint: Endpoint, settings: EvalSettings) -> bytes:
    body: dict[str, Any] = {
        "model": endpoint.model, "temperature": 0, "seed": settings.seed, "max_tokens": item.max_tokens,
        "stream": False,
    }  # fmt: skip
    if item.stop:
        body["stop"] = list(item.stop)
    if endpoint.engine == "llamacpp":
        body["cache_prompt"] = False  # tokens computed in other batches than the cached ones come out differently
    described = _described(item) if settings.tools == "prompt" else None
    if settings.api == "completions":
        body["prompt"] = item.prompt if described is None else f"{described}\n\n{item.prompt}"
        return orjson.dumps(body)
    messages = list(item.messages or ({"role": "user", "content": item.prompt},))
    if described is not None:
        messages = _with_system(messages, described)
    elif item.tools:
        body["tools"] = list(item.tools)
    body["messages"] = messages
    return orjson.dumps(body)


def _described(item: EvalItem) -> str | None:
    if not item.tools:
        return None
    return _TOOL_PROMPT.format(tools="\n".join(orjson.dumps(tool).decode() for tool in item.tools))


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    first = messages[0]
    if first.get("role") == "system":
        return [first | {"content": f"{first.get('content') or ''}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
