"""One request as a line of the trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fwopt.record.asked import Asked
from fwopt.record.prefix import BLOCK_TOKENS
from fwopt.record.reply import Reply
from fwopt.record.sessions import Turn
from fwopt.workload.formats.recorded import Cut, Reason

BYTES_A_TOKEN = 4
"""Of English text, where nobody counted."""


@dataclass(slots=True)
class Seen:
    """What the recorder saw of one request."""

    id: str
    arrival_s: float
    asked: Asked
    reply: Reply
    status: int | None = None
    first_token_s: float | None = None
    end_s: float = 0.0
    cut: Cut | None = None
    """Who broke the exchange off."""
    prefix_blocks: list[int] | None = None
    prompt_tokens: int | None = None
    """Counted with the tokenizer."""
    prompt_bytes: int | None = None
    """Under text blocks."""
    adapter: str | None = None
    model: str | None = None
    estimated: list[str] = field(default_factory=list)


def reason_left_out(seen: Seen) -> Reason | None:
    """Why the request is no load to plan for."""
    reply, status = seen.reply, seen.status
    if status is None:
        return "disconnected" if seen.cut in ("client", "recorder") else "unreachable"
    if status >= 400:
        return "refused"
    if seen.asked.left_out is not None:
        return seen.asked.left_out
    if not (reply.output_tokens or reply.chunks):
        if seen.cut is not None or reply.failed:
            return "disconnected" if seen.cut in ("client", "recorder") else "broken"
        return "no output" if reply.output_tokens == 0 else "no usage"
    if reply.output_tokens is None and not seen.asked.stream:
        return "no usage"
    return None


def left_out_line(seen: Seen, reason: Reason) -> dict[str, Any]:
    row: dict[str, Any] = {
        "left_out": reason,
        "arrival_s": seen.arrival_s,
        "end_s": seen.end_s,
        "status": seen.status,
        "api": seen.asked.api,
        "model": seen.model,
    }
    return {name: value for name, value in row.items() if value is not None}


def request_line(seen: Seen, session: str, parent: Turn | None) -> dict[str, Any]:
    asked, reply = seen.asked, seen.reply
    prompt, output = _counts(seen)
    row: dict[str, Any] = {
        "arrival_s": seen.arrival_s,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "max_tokens": _limit(seen, output),
        "id": seen.id,
        "session_id": session,
        "parent_id": parent.id if parent else None,
        "model": seen.model,
        "adapter": seen.adapter,
        "tools": asked.tools or None,
        "first_token_s": seen.first_token_s,
        "end_s": seen.end_s,
        "status": seen.status,
        "api": asked.api,
        "stream": asked.stream,
        "finish_reason": reply.finish_reason or None,
        "cut": seen.cut or ("upstream" if reply.failed else None),
        "tool_calls": reply.tool_calls() or None,
        "cached_tokens": reply.cached_tokens,
        "estimated": seen.estimated or None,
        "prompt_bytes": seen.prompt_bytes,
        "prefix_blocks": _within(seen, prompt),
    }
    return {name: value for name, value in row.items() if value is not None}


def _counts(seen: Seen) -> tuple[int, int]:
    """(prompt tokens, output tokens); what the server did not tell is estimated, and marked."""
    prompt, output = seen.reply.prompt_tokens, seen.reply.output_tokens
    if not prompt:
        seen.estimated.append("prompt_tokens")
        prompt = seen.prompt_tokens or max((seen.prompt_bytes or 0) // BYTES_A_TOKEN, 1)
    if not output:
        seen.estimated.append("output_tokens")
        output = seen.reply.chunks
        if seen.asked.max_tokens is not None:
            output = min(
                output, seen.asked.max_tokens
            )  # a chunk may be less than a token, never more tokens than asked
    return prompt, output


def _limit(seen: Seen, output: int) -> int | None:
    """The client's limit, unless the server did not keep to it."""
    limit = seen.asked.max_tokens
    return limit if limit is not None and limit >= output else None


def _within(seen: Seen, prompt: int) -> list[int] | None:
    """Blocks of tokens that the server's count bears out; blocks of text are fitted to the tokens by the reader."""
    blocks = seen.prefix_blocks
    least = 1 if seen.prompt_bytes is not None else BLOCK_TOKENS
    return (blocks or [])[: prompt // least] or None


def text_of(asked: Asked, reply: Reply) -> dict[str, Any]:
    """Words alone, field by field: other fields (users, metadata, headers for tool servers) may hold secrets."""
    text: dict[str, Any] = {}
    if asked.messages is not None:
        text["messages"] = asked.messages
    elif asked.text is not None:
        text["prompt"] = asked.text
    elif asked.tokens is not None:
        text["prompt"] = asked.tokens
    functions = [tool["function"] for tool in asked.offered if isinstance(tool.get("function"), dict)]
    if functions:
        text["functions"] = functions
    if asked.api == "completions":
        text["reply"] = "".join(reply.text)
    else:
        text["reply"] = reply.messages()
    return text
