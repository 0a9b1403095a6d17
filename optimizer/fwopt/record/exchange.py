"""Reading along: from the first byte of a request to its line in the trace."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import TYPE_CHECKING, Literal

from fwopt.errors import TraceError
from fwopt.record.asked import Asked, rendered
from fwopt.record.content import Decoder, decoder
from fwopt.record.line import Seen, left_out_line, reason_left_out, request_line
from fwopt.record.prefix import text_blocks, token_blocks
from fwopt.record.reply import Reply
from fwopt.record.sessions import Turn
from fwopt.record.sse import Events
from fwopt.workload.formats.recorded import Cut

if TYPE_CHECKING:
    from fwopt.record.recorder import Recorder


_HEAD_START_S = 0.001
"""A request is on its way to the server before its prompt is hashed."""

_WAIT_S = 0.05
"""The end of a reply waits at most this long for the prompt to be hashed, so that its line is written before."""


class Exchange:
    """One request and its reply. Nothing it does may keep the bytes from passing."""

    def __init__(self, recorder: Recorder, asked: Asked, id: str, arrival_s: float) -> None:
        self.asked = asked
        self._recorder, self._reply = recorder, Reply(asked.api)
        self._seen = Seen(id, arrival_s, asked, self._reply)
        self._states: list[Hashable] = []
        self._parent: Turn | None = None
        self._kind: Literal["events", "body", "unread"] = "unread"
        self._withhold = False
        self._events, self._body = Events(), bytearray()
        self._decoder: Decoder | None = None
        self._finished = self.at_end = False
        self._analysis: asyncio.Future[None] | None = None
        asyncio.get_running_loop().call_later(_HEAD_START_S, self._begin_analysis)

    def _begin_analysis(self) -> asyncio.Future[None]:
        if self._analysis is None:
            self._analysis = asyncio.ensure_future(self._analyse())
        return self._analysis

    async def _analyse(self) -> None:
        """While the server works: blocks of the prompt, and the turn that this one continues."""
        with self._recorder.guard("a prompt"):
            recorder, asked, seen = self._recorder, self.asked, self._seen
            texts = None
            if asked.continues is None:
                if recorder.tokenizer is None or asked.text is not None:
                    texts = await self._text_blocks()
                if recorder.tokenizer is not None:
                    await self._token_blocks()
            self._states = recorder.sessions.states(asked, texts)
            self._parent = recorder.sessions.parent(asked, self._states)
            if recorder.tokenizer is not None:
                seen.prompt_bytes = None

    async def _text_blocks(self) -> list[int]:
        asked, seen = self.asked, self._seen
        if asked.tokens is not None:
            text = b"".join(token.to_bytes(4, "little") for token in asked.tokens)
        else:
            text = rendered(asked)
        blocks = await text_blocks(self._recorder.key, text)
        seen.prefix_blocks, seen.prompt_bytes = blocks, len(text)
        return blocks

    async def _token_blocks(self) -> None:
        tokenizer, seen = self._recorder.tokenizer, self._seen
        assert tokenizer is not None
        seen.prefix_blocks = None
        try:
            ids = await tokenizer.ids(self.asked)
        except TraceError:
            self._recorder.counts.untokenized += 1
            return
        seen.prompt_tokens = len(ids)
        seen.prefix_blocks = await token_blocks(self._recorder.key, ids)

    def begin_reply(self, status: int, content_type: str, coding: str | None, withhold_usage: bool) -> None:
        """The head of the reply came. With `withhold_usage` the client must not see the token counts."""
        self._seen.status = status
        self._decoder = decoder(coding)
        if self._decoder is None:
            self._recorder.counts.unread += 1
            return
        self._kind = "events" if content_type == "text/event-stream" else "body"
        self._withhold = withhold_usage and self._kind == "events"

    def feed(self, chunk: bytes, last: bool) -> bytes:
        """Read along; what is to be passed on. At the end (`at_end`), `end` comes first."""
        passed = chunk
        if self._kind != "unread":
            plain = self._plain(chunk)
            if plain is None:
                self._kind = "unread"
            elif self._kind == "body":
                self._collect(plain)
            else:
                kept = self._take_events(plain)
                passed = kept if self._withhold else chunk
        self.at_end = self.at_end or last or self._reply.ended
        return passed

    async def end(self) -> None:
        """Write the line before the client sees the reply's end, unless its prompt takes too long for that."""
        if not self._finished:
            self._seen.end_s = self._since()
            analysis = self._begin_analysis()
            if not analysis.done():
                await asyncio.wait({analysis}, timeout=_WAIT_S)
            self.finish()

    def _plain(self, chunk: bytes) -> bytes | None:
        assert self._decoder is not None
        try:
            return self._decoder.decompress(chunk)
        except Exception as error:
            self._recorder.failed("a reply", error)
            return None

    def _collect(self, plain: bytes) -> None:
        if not self._body:
            self._first()
        self._body += plain
        if len(self._body) > self._recorder.body_bytes:
            self._kind = "unread"
            self._body.clear()

    def _take_events(self, plain: bytes) -> bytes:
        reply, kept = self._reply, []
        for raw, data in self._events.feed(plain):
            only_usage = False
            if data:
                before = reply.chunks
                try:
                    only_usage = reply.event(data)
                except Exception as error:
                    self._recorder.failed("an event", error)
                if not before and reply.chunks:
                    self._first()
            if not (only_usage and self._withhold):
                kept.append(raw)
                if self._withhold and b'"usage":null' in raw:
                    self._recorder.stop_asking()
        return b"".join(kept)

    def _first(self) -> None:
        if self._seen.first_token_s is None and self.asked.stream:
            self._seen.first_token_s = self._since()

    def _since(self) -> float:
        return round(self._recorder.clock() - self._seen.arrival_s, 6)

    def tail(self) -> bytes:
        """What was held back when the stream ended inside an event."""
        return self._events.rest if self._withhold else b""

    def finish(self, cut: Cut | None = None) -> None:
        """Write the line: at once, or when the prompt is hashed. Later calls do nothing."""
        if self._finished:
            return
        self._finished = True
        self._seen.cut, self._seen.end_s = cut, self._seen.end_s or self._since()
        if self._kind == "body":
            with self._recorder.guard("a reply"):
                self._reply.body(bytes(self._body))
            self._body.clear()
        analysis = self._begin_analysis()
        if analysis.done():
            self._write()
        else:
            self._recorder.later(self._write_after(analysis))

    async def _write_after(self, analysis: asyncio.Future[None]) -> None:
        await analysis
        self._write()

    def _write(self) -> None:
        with self._recorder.guard("a request"):
            recorder, seen, asked = self._recorder, self._seen, self.asked
            seen.model, seen.adapter = recorder.names(asked)
            reason = reason_left_out(seen)
            if reason is not None:
                if recorder.writer.write(left_out_line(seen, reason)) is not None:
                    recorder.counts.left_out += 1
                return
            parent, session = self._parent, self._parent.session if self._parent else seen.id
            here = parent if parent is not None and parent.file == recorder.writer.file else None
            row = request_line(seen, session, here)
            file = recorder.write_request(row, asked, self._reply)
            if file is not None:
                turn = Turn(seen.id, session, file)
                recorder.sessions.remember(asked, self._states, self._reply, turn)
