"""Logs of OpenAI-compatible servers and gateways: one JSON object a line for each chat or text completion.

The request body (`model`, `messages` or `prompt`, `max_tokens` or `max_completion_tokens`, `tools`) lies under
`request`, `request.body`, `body` or at the top; the response (`usage`, `created`, `choices`) under `response`,
`response.body` or at the top; each an object, or one written as text. Time: the first of `timestamp`, `start_time`,
`startTime`, `created_at`, `created` at the top, else the response's `created`; ISO 8601 text or a number since 1970,
whose size tells seconds from milli-, micro- and nanoseconds. Tokens come from `usage`, from `prompt_tokens` and
`completion_tokens` at the top (LiteLLM), else from the model's own tokenizer.

No text is kept: prefixes are chained, keyed hashes, and the key is forgotten with the reading.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Any

import orjson

from fwopt.workload.builder import Builder
from fwopt.workload.clock import NANOSECONDS, Clock
from fwopt.workload.formats.base import JsonRows, Options, TraceFormat, in_part_note, is_in_part
from fwopt.workload.formats.tokens import ChatTokenizer
from fwopt.workload.source import Head

TEXT_BLOCK_BYTES = 64
"""Without a tokenizer, a prefix block is this much of the request's JSON text: about 16 tokens of English."""
TOKEN_BLOCK = 16
_NO_LIMIT = -1
"""What clients of llama.cpp send as `max_tokens` to set none."""
_TIMES = ("timestamp", "start_time", "startTime", "created_at", "created")
_SESSIONS = ("session_id", "conversation_id")


def _accepts(head: Head) -> bool:
    def shaped(row: Any, depth: int = 0) -> bool:
        if type(row := _parsed(row)) is not dict:
            return False
        marks = ({"messages"}, {"usage"}, {"prompt", "model"}, {"prompt_tokens", "completion_tokens"})
        if any(fields <= row.keys() for fields in marks):
            return True
        return depth < 2 and any(shaped(row.get(field), depth + 1) for field in ("request", "body", "response"))

    return any(shaped(row) for row in head.objects)


class OpenAiRows(JsonRows):
    def __init__(self, file: str, head: Head, options: Options) -> None:
        super().__init__(
            Builder(
                file, {"arrival_s": "created", "output_tokens": "completion_tokens"}, ticks_per_s=NANOSECONDS, sort=True
            )
        )
        self._tokenizer = ChatTokenizer(options.model) if options.model else None
        self.builder.block_tokens = TOKEN_BLOCK if self._tokenizer else 1
        self._key, self._clock = os.urandom(32), Clock()
        self._text_bytes = self._text_tokens = self._counted = self._in_part = self._cached = 0

    def parse(self, line: bytes) -> dict[str, Any]:
        row = super().parse(line)
        self.unread.clear()  # logs carry dozens of fields; which ones are read is documented
        return row

    def row(self, line: bytes) -> None:
        row = self.parse(line)
        if row.get("cache_hit") in (True, "True", "true"):
            self._cached += 1
            return
        request = self._object(row, "request") or row
        request = self._object(request, "body") or request
        response = self._object(row, "response") or row
        response = self._object(response, "body") or response
        if (request.get("n") or 1) != 1:
            self.builder.bad("n", "must be 1: a request that samples several answers is not modelled", request["n"])
        tools = request.get("tools")
        if tools is not None and type(tools) is not list:
            self.builder.bad("tools", "must be a list", type(tools).__name__)
        text = self._text(request)
        ids = self._tokenizer.prompt(request, self.builder) if self._tokenizer and text else None
        prompt, output, counted = self._tokens(row, response, ids)
        in_part = bool(text) and ids is None and type(prompt) is int and is_in_part(prompt, len(text))
        text = b"" if in_part else text
        blocks = self._token_blocks(ids, prompt) if ids is not None else self._text_blocks(text, prompt)
        metadata = _parsed(request.get("metadata"))  # anything may stand there
        limit = _first(("max_completion_tokens", "max_tokens"), request)
        self.builder.add(
            self._time(row, response),
            prompt,
            output,
            max_tokens=None if limit == _NO_LIMIT else limit,
            blocks=blocks,
            session=_first(_SESSIONS, row, request, metadata if type(metadata) is dict else {}),
            model=_first(("model",), request, response),
            tools=len(tools) if tools else 0,
        )
        self._counted += counted
        self._in_part += in_part
        if text and ids is None:
            self._text_bytes += len(text)
            self._text_tokens += prompt

    def _tokens(self, row: dict[str, Any], response: dict[str, Any], ids: list[int] | None) -> tuple[Any, Any, bool]:
        """(prompt tokens, output tokens, counted here)."""
        usage = self._object(response, "usage") or self._object(row, "usage")
        if usage is None and "completion_tokens" in row:
            usage = row
        if usage is not None:
            return usage.get("prompt_tokens"), usage.get("completion_tokens"), False
        if row.get("error") or response.get("error"):
            self.builder.bad("error", "must be absent: a request that failed is no load to plan for", "one")
        if self._tokenizer is None or ids is None:
            rule = "must hold prompt_tokens and completion_tokens; `fwopt convert` counts them, by --model FOLDER"
            self.builder.bad("usage", rule, "absent")
        return len(ids), self._tokenizer.output(response, self.builder), True

    def _time(self, row: dict[str, Any], response: dict[str, Any]) -> int:
        value = _first(_TIMES, row)
        value = response.get("created") if value is None else value
        ticks = None
        if type(value) is str:
            ticks = self._clock.nanoseconds(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            scale = next(s for limit, s in ((1e11, 10**9), (1e14, 10**6), (1e17, 1000), (1e309, 1)) if value < limit)
            ticks = value * scale if isinstance(value, int) else round(value * scale)
        if ticks is None:
            rule = (
                "must be ISO 8601 text or a number since 1970 (timestamp, start_time, startTime, created_at or created)"
            )
            self.builder.bad("arrival_s", rule, "absent" if value is None else value)
        return ticks

    def _text(self, request: dict[str, Any]) -> bytes:
        """The prompt as bytes in which equal beginnings of conversations are equal; empty when it was not logged."""
        messages = request.get("messages")
        if messages is not None and messages != {}:
            if type(messages) is not list or any(type(m) is not dict for m in messages):
                self.builder.bad("messages", "must be a list of objects", type(messages).__name__)
            parts = [request.get("tools") or [], *messages]
        else:
            prompt = request.get("prompt")
            if prompt is None:
                return b""
            if type(prompt) is str:
                return prompt.encode()
            if type(prompt) is not list or any(type(token) is not int for token in prompt):
                self.builder.bad("prompt", "must be one text or one list of token ids", type(prompt).__name__)
            parts = prompt
        return b"\n".join(orjson.dumps(_compact(part), option=orjson.OPT_SORT_KEYS) for part in parts)

    def _text_blocks(self, text: bytes, prompt: Any) -> list[int] | None:
        if not text or type(prompt) is not int:
            return None
        whole = range(0, len(text) - TEXT_BLOCK_BYTES + 1, TEXT_BLOCK_BYTES)
        return self._chain([text[at : at + TEXT_BLOCK_BYTES] for at in whole])[: max(prompt, 0)]

    def _object(self, row: dict[str, Any], field: str) -> dict[str, Any] | None:
        """The field's object, also where it is written as text; None where it holds none."""
        value = row.get(field)
        parsed = _parsed(value)
        if parsed is None and value is not None:
            self.builder.bad(field, "must be JSON where it begins with {", "broken JSON")
        return parsed if type(parsed) is dict and parsed else None

    def _token_blocks(self, ids: list[int], prompt: Any) -> list[int]:
        whole = range(0, min(len(ids), prompt if type(prompt) is int else 0) - TOKEN_BLOCK + 1, TOKEN_BLOCK)
        return self._chain([repr(ids[at : at + TOKEN_BLOCK]).encode() for at in whole])

    def _chain(self, parts: list[bytes]) -> list[int]:
        hashes, link = [], b""
        for part in parts:
            link = blake2b(link + part, digest_size=8, key=self._key).digest()
            hashes.append(int.from_bytes(link, "little"))
        return hashes

    def finish(self) -> tuple[str, ...]:
        notes = []
        if self.builder.out_of_order:
            notes.append(f"sorted by time; lines dated before an earlier one: {self.builder.out_of_order}")
        if self._cached:
            notes.append(f"answered by the gateway's own cache, left out: {self._cached}")
        if self._counted:
            notes.append(f"requests without usage, counted with the tokenizer given: {self._counted}")
        if self._in_part:
            notes.append(in_part_note(self._in_part))
        if self._tokenizer is None:
            tokens = round(TEXT_BLOCK_BYTES * self._text_tokens / self._text_bytes) if self._text_bytes else 0
            self.builder.set_block_tokens(max(tokens, 1) if self._text_bytes else 0)
            if self._text_bytes:
                notes.append(
                    f"prefix blocks are {TEXT_BLOCK_BYTES} bytes of text, {max(tokens, 1)} tokens on average here: "
                    "shares are estimates; `fwopt convert` makes them exact, by --model FOLDER with tokenizer.json"
                )
        return tuple(notes)


def _parsed(value: Any) -> Any:
    """A value, or what it says where it is the text of a JSON object; None where that text is broken."""
    if type(value) is not str or not value.lstrip().startswith("{"):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


def _first(fields: tuple[str, ...], *rows: dict[str, Any]) -> Any:
    """The first that says something; an empty text does not."""
    return next((row[f] for row in rows for f in fields if row.get(f) not in (None, "")), None)


def _compact(part: Any) -> Any:
    """A message with its images, audio and files replaced by digests: their bytes are no prompt tokens."""
    if type(part) is not dict or type(part.get("content")) is not list:
        return part
    pieces = [
        p
        if not isinstance(p, dict) or p.get("type") == "text"
        else blake2b(orjson.dumps(p), digest_size=16).hexdigest()
        for p in part["content"]
    ]
    return {**part, "content": pieces}


FORMAT = TraceFormat(
    "OpenAI chat/completions log, JSONL (messages or prompt, usage, created)", _accepts, OpenAiRows, counts_tokens=True
)
