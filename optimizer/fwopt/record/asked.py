"""What one request asks for, read from its body. Nothing here outlives the request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from fwopt.record.conversation import canonical, from_items
from fwopt.workload.formats.recorded import Api, Reason

_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_USAGE = b'"stream_options":{"include_usage":true},'


@dataclass(slots=True)
class Asked:
    """A request that can be recorded."""

    api: Api
    stream: bool
    model: str | None
    lora: str | None
    """Adapter named in the body (`lora_path`, SGLang); elsewhere adapters go by a model's name."""
    max_tokens: int | None
    tools: int
    left_out: Reason | None
    """Why this request will be no load to plan for, as far as its body tells."""
    messages: list[dict[str, Any]] | None = None
    """The conversation, for chat and responses."""
    text: str | None = None
    """The prompt of a completion."""
    tokens: list[int] | None = None
    """The prompt of a completion that came as token ids."""
    continues: str | None = None
    """`previous_response_id`: the prompt is not in this request."""
    offered: list[dict[str, Any]] = field(default_factory=list)
    """The tools themselves."""
    template: dict[str, Any] = field(default_factory=dict)
    """`chat_template_kwargs`."""
    usage: Literal["asked", "may be asked", "not to be had"] = "asked"
    """Whether a streamed reply will tell its token counts."""


def read_body(api: Api, body: bytes) -> Asked | None:
    """None: not a JSON object, which the server will refuse."""
    try:
        row = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(row) is not dict:
        return None
    model, lora = row.get("model"), row.get("lora_path")
    tools = row.get("tools")
    offered = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    limit = next((row[name] for name in _LIMITS if type(row.get(name)) is int), None)
    asked = Asked(
        api=api,
        stream=row.get("stream") is True,
        model=model if isinstance(model, str) and model else None,
        lora=lora if isinstance(lora, str) and lora else None,
        max_tokens=limit if limit is not None and limit >= 1 else None,
        tools=len(offered),
        left_out="several answers" if _several(row) else None,
        offered=offered,
        template=row["chat_template_kwargs"] if isinstance(row.get("chat_template_kwargs"), dict) else {},
        usage=_usage(api, row),
    )
    _read_prompt(asked, row)
    return asked


def _several(row: dict[str, Any]) -> bool:
    return any(type(row.get(name)) is int and row[name] > 1 for name in ("n", "best_of"))


def _usage(api: Api, row: dict[str, Any]) -> Literal["asked", "may be asked", "not to be had"]:
    if api == "responses" or row.get("stream") is not True:
        return "asked"
    if "stream_options" not in row:
        return "may be asked"
    options = row["stream_options"]
    return "asked" if isinstance(options, dict) and options.get("include_usage") is True else "not to be had"


def _read_prompt(asked: Asked, row: dict[str, Any]) -> None:
    if asked.api == "chat":
        messages = row.get("messages")
        if isinstance(messages, list):
            asked.messages = [message for message in messages if isinstance(message, dict)]
        return
    if asked.api == "responses":
        continues = row.get("previous_response_id")
        asked.continues = continues if isinstance(continues, str) else None
        asked.messages = from_items(row.get("input"), row.get("instructions"))
        return
    prompt = row.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str):
        asked.text = prompt
    elif isinstance(prompt, list) and prompt and all(type(token) is int and 0 <= token < 1 << 32 for token in prompt):
        asked.tokens = prompt
    elif isinstance(prompt, list) and len(prompt) > 1:
        asked.left_out = "several prompts"


def with_usage(body: bytes) -> bytes:
    """The same body, asking for token counts too: everything else stays as the client wrote it."""
    start = body.index(b"{") + 1
    return body[:start] + _USAGE + body[start:]


def rendered(asked: Asked) -> bytes:
    """The prompt as bytes in which equal beginnings are equal, close to what a chat template makes of it."""
    if asked.text is not None:
        return asked.text.encode(errors="replace")
    parts = [orjson.dumps(tool, option=orjson.OPT_SORT_KEYS) for tool in asked.offered]
    parts += [canonical(message) for message in asked.messages or ()]
    return b"\n".join(parts)
