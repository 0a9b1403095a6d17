"""One request on its way: hears of its connection, and writes what happens into the rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Final

from fwopt.live.http import Connection
from fwopt.live.options import ReplayOptions
from fwopt.live.rows import Rows
from fwopt.live.stream import Event, EventParser, StreamError, Usage
from fwopt.metrics.records import BROKEN_OFF, FAILED, FINISHED, TIMED_OUT, UNREACHABLE

_ERROR_BYTES = 4096
_SHOWN = 400


class Exchange:
    """The `Receiver` of one request. `ended` is called once, with this exchange."""

    __slots__ = (
        "_closed_s", "_error_body", "_http_ok", "_parser", "_rows", "_zero_s", "chunk_us", "connection", "ended",
        "index", "last_s", "over", "running", "started_s", "usage",
    )  # fmt: skip

    def __init__(
        self, index: int, rows: Rows, zero_s: float, started_s: float, chat: bool, ended: Callable[[Exchange], None]
    ) -> None:
        self.index: Final = index
        self.connection: Connection | None = None
        self.ended, self.over = ended, False
        self.started_s, self.last_s = started_s, math.nan
        self.chunk_us: array[int] = array("I")
        self.running: array[int] = array("I")
        """The server's count of tokens after each event, where it tells."""
        self.usage: Usage | None = None
        self._rows, self._zero_s = rows, zero_s
        self._parser = EventParser(chat=chat)
        self._http_ok, self._error_body = True, b""
        self._closed_s: float | None = None
        """When an event without text said why the answer ended."""

    def sent(self, now_s: float) -> None:
        self._rows.sent_s[self.index] = now_s - self._zero_s

    def head(self, status: int, headers: dict[bytes, bytes], now_s: float) -> None:
        self._rows.http_status[self.index] = status
        kind = headers.get(b"content-type", b"")
        self._http_ok = status == 200 and kind.startswith(b"text/event-stream")
        if b"retry-after" in headers:
            try:
                self._rows.retry_after_s[self.index] = float(headers[b"retry-after"])
            except ValueError:  # an HTTP date: kept as text
                self._error_body = b"Retry-After: " + headers[b"retry-after"] + b"; "

    def body(self, data: bytes, now_s: float) -> None:
        if self.over:
            return
        if not self._http_ok:
            self._error_body += data[: _ERROR_BYTES - len(self._error_body)]
            return
        try:
            for event in self._parser.feed(data):
                self._take(event, now_s)
        except StreamError as error:
            self.fail(BROKEN_OFF if error.malformed else FAILED, str(error), now_s)
            return
        if self._parser.done:
            self._finish(now_s)

    def _take(self, event: Event, now_s: float) -> None:
        if event.usage is not None:
            self.usage = event.usage
        if event.carries_choice and (event.carries_tokens or len(self.chunk_us)):
            self._rows.last_token_s[self.index] = now_s - self._zero_s
        if event.finish_reason is not None and event.finish_reason != "length":
            self._rows.finish_reasons[self.index] = event.finish_reason
        if not event.carries_tokens:
            if event.finish_reason is not None:
                self._closed_s = now_s
            return
        self._token(now_s)
        if event.usage is not None:
            self.running.append(event.usage.completion_tokens)

    def _token(self, now_s: float) -> None:
        self.last_s = now_s
        if not len(self.chunk_us):
            self._rows.first_token_s[self.index] = now_s - self._zero_s
        self.chunk_us.append(round((now_s - self.started_s) * 1e6))

    def end(self, now_s: float) -> None:
        """The HTTP message is complete."""
        if self.over:
            return
        if not self._http_ok:
            status = int(self._rows.http_status[self.index])
            text = " ".join(self._error_body.decode("utf-8", "replace").split())
            what = f"HTTP {status}" if status != 200 else "HTTP 200, but no event stream"
            self.fail(FAILED if status != 200 else BROKEN_OFF, f"{what}: {text}", now_s)
        else:
            cut = f" within an event: {self._parser.unfinished[:60]!r}" if self._parser.unfinished else ""
            self.fail(BROKEN_OFF, f"the stream ended without [DONE]{cut}", now_s)

    def lost(self, reason: str, now_s: float) -> None:
        answered = self._rows.http_status[self.index] >= 0
        self.fail(BROKEN_OFF if answered else UNREACHABLE, reason, now_s)

    def overdue(self, options: ReplayOptions, now_s: float) -> str | None:
        """Which timeout has passed, if any."""
        if now_s - self.started_s > options.total_timeout_s:
            return f"no end within {options.total_timeout_s:g} s"
        if not len(self.chunk_us):
            waited = options.first_token_timeout_s
            return f"no token within {waited:g} s" if now_s - self.started_s > waited else None
        waited = options.between_tokens_timeout_s
        return f"no token for {waited:g} s after {len(self.chunk_us)}" if now_s - self.last_s > waited else None

    def time_out(self, reason: str, now_s: float) -> None:
        self.fail(TIMED_OUT, reason, now_s)

    def fail(self, status: int, reason: str, now_s: float) -> None:
        if self.over:
            return
        self._rows.errors[self.index] = reason[:_SHOWN]
        self._close(status, now_s)
        if self.connection is not None:
            self.connection.close()

    def _finish(self, now_s: float) -> None:
        if not len(self.chunk_us) and self._closed_s is not None and self.usage and self.usage.completion_tokens:
            self._token(self._closed_s)  # a lone token without text comes with the closing event
            self._rows.last_token_s[self.index] = self._closed_s - self._zero_s
        if not len(self.chunk_us):
            self.fail(BROKEN_OFF, "the stream ended without a token", now_s)
            return
        self._close(FINISHED, now_s)

    def _close(self, status: int, now_s: float) -> None:
        rows, i = self._rows, self.index
        self.over = True
        rows.status[i], rows.end_s[i], rows.token_events[i] = status, now_s - self._zero_s, len(self.chunk_us)
        if self.usage is not None:
            rows.prompt_usage[i], rows.completion_usage[i] = self.usage.prompt_tokens, self.usage.completion_tokens
            if self.usage.cached_tokens is not None:
                rows.cached_usage[i] = self.usage.cached_tokens
        self.ended(self)
