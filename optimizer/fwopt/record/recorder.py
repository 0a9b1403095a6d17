"""What all exchanges of one recording share: key, file, sessions, counts."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fwopt.record.asked import Asked, read_body
from fwopt.record.content import decoded
from fwopt.record.exchange import Exchange
from fwopt.record.key import PrefixKey
from fwopt.record.line import text_of
from fwopt.record.prefix import BLOCK_BYTES, BLOCK_TOKENS
from fwopt.record.reply import Reply
from fwopt.record.sessions import Sessions
from fwopt.record.tokens import PromptTokens
from fwopt.record.writer import TraceWriter
from fwopt.spec.base import SCHEMA_VERSION
from fwopt.workload.formats.recorded import Api
from fwopt.workload.source import MAX_LINE_BYTES

BODY_BYTES = 64 << 20
"""Bodies over this size pass through without being read."""


class Clock:
    """Seconds since 1970 that never run backwards, whatever is done to the machine's clock meanwhile."""

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()

    def __call__(self) -> float:
        return round(time.perf_counter() + self._offset, 6)


@dataclass(slots=True)
class Counts:
    """What became of the requests; lines lost to the disk are the writer's count."""

    recorded: int = 0
    left_out: int = 0
    unread: int = 0
    """Requests or replies that could not be read: they passed, and are not in the trace or without token counts."""
    untokenized: int = 0
    """The chat template refused the messages: recorded without prefix blocks."""
    without_text: int = 0
    """Text too long for a line."""


def header(tokenizer: bool) -> dict[str, Any]:
    """First line of the trace."""
    blocks = {"block_tokens": BLOCK_TOKENS} if tokenizer else {"block_bytes": BLOCK_BYTES}
    return {"schema_version": SCHEMA_VERSION, "order": "completion", **blocks}


class Recorder:
    def __init__(
        self,
        key: PrefixKey,
        writer: TraceWriter,
        tokenizer: Path | None,
        *,
        with_text: bool,
        ask_usage: bool,
        say: Callable[[str], None],
    ) -> None:
        self.key, self.writer, self._with_text, self._say = key, writer, with_text, say
        self.tokenizer = PromptTokens(tokenizer) if tokenizer else None
        self.sessions, self.counts, self.clock = Sessions(key), Counts(), Clock()
        self.ask_usage, self.body_bytes = ask_usage, BODY_BYTES
        self.adapters: dict[str, str] = {}
        """Adapter -> the model it belongs to, as the server lists them."""
        self._pending: set[asyncio.Task[None]] = set()
        self._said: set[str] = set()
        self._run, self._number = os.urandom(4).hex(), 0

    def begin(self, api: Api, body: bytes, coding: str | None, arrival_s: float) -> Exchange | None:
        """None: the body is nothing that can be recorded; the server will say what it thinks of it."""
        asked: Asked | None = None
        with self.guard("a request"):
            plain = decoded(body, coding, BODY_BYTES)
            asked = None if plain is None else read_body(api, plain)
        if asked is None:
            self.counts.unread += 1
            return None
        self._number += 1
        return Exchange(self, asked, f"{self._run}-{self._number}", arrival_s)

    def names(self, asked: Asked) -> tuple[str | None, str | None]:
        """(model, adapter): servers list an adapter as a model of its own, with the base as its parent."""
        base = self.adapters.get(asked.model or "")
        return (asked.model, asked.lora) if base is None else (base, asked.model)

    def write_request(self, row: dict[str, Any], asked: Asked, reply: Reply) -> int | None:
        """Number of the file that the line went to; None: lost."""
        if self._with_text:
            text = text_of(asked, reply)
            if len(orjson.dumps(row)) + len(orjson.dumps(text)) < MAX_LINE_BYTES - 16:
                row["text"] = text
            else:
                self.counts.without_text += 1
        file = self.writer.write(row)
        if file is not None:
            self.counts.recorded += 1
        return file

    def stop_asking(self) -> None:
        """The server marks other events too when it is asked for token counts: the client would see that."""
        if self.ask_usage:
            self.ask_usage = False
            self._say(
                'this server adds "usage":null to every event when asked for token counts: no longer asking; streams '
                "whose clients do not ask are recorded with estimated counts"
            )

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Recording must never break serving: whatever goes wrong in here is counted, and said once, without values."""
        try:
            yield
        except Exception as error:
            self.failed(what, error)

    def failed(self, what: str, error: Exception) -> None:
        self.counts.unread += 1
        self.report(f"{what} passed through but could not be recorded", error)

    def report(self, what: str, error: Exception) -> None:
        """A bug, said once, without the values in its message."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{what}: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        if said not in self._said:
            self._said.add(said)
            self._say(said)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def close(self) -> None:
        """Lines of requests that are over but not yet written."""
        while self._pending:
            await asyncio.wait(self._pending)
        if self.tokenizer is not None:
            self.tokenizer.close()
