"""HTTP/1.1 as far as streaming completions need it: one exchange at a time, each read stamped at the socket.

Written by hand because of benchmarks/live.md: at 1,000 streamed replies a second aiohttp's client needs almost twice
the time, and hands bytes to a task that runs later, so that its stamps include the wait.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Protocol, cast
from urllib.parse import urlsplit

from fwopt.errors import InputError

MAX_IDLE_S = 2.0
"""A kept connection idle for longer is not used again: servers (uvicorn after 5 s) are about to drop it."""
_MAX_HEAD_BYTES = 64 * 1024


class Receiver(Protocol):
    """Who hears of one exchange. After `end` or `lost` nothing more comes."""

    def sent(self, now_s: float) -> None: ...

    def head(self, status: int, headers: dict[bytes, bytes], now_s: float) -> None: ...

    def body(self, data: bytes, now_s: float) -> None: ...

    def end(self, now_s: float) -> None: ...

    def lost(self, reason: str, now_s: float) -> None: ...


class Connection(asyncio.Protocol):
    """One socket; idle, or in the middle of one exchange."""

    __slots__ = ("_buffer", "_keep", "_left", "_pool", "_receiver", "_state", "_transport", "idle_since_s")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._receiver: Receiver | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer, self._state, self._left, self._keep = b"", "idle", 0, True
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, message: bytes, receiver: Receiver) -> None:
        assert self._state == "idle"
        assert self._transport is not None
        self._receiver, self._state, self._buffer, self._keep = receiver, "head", b"", True
        self._transport.write(message)
        receiver.sent(perf_counter())

    @property
    def usable(self) -> bool:
        return self._state == "idle" and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Give up on the exchange: its receiver hears nothing more."""
        self._receiver, self._state = None, "closed"
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self._buffer = self._buffer + data if self._buffer else data
        try:
            while self._buffer and self._receiver is not None and self._step(now):
                pass
        except ValueError as error:
            self._fail(f"no valid HTTP: {error}", now)
        if self._state == "idle" and self._buffer:  # bytes that answer no request
            self.close()

    def _step(self, now: float) -> bool:
        """Take one part off the buffer; False when it needs more bytes."""
        assert self._receiver is not None
        if self._state == "head":
            return self._head(now)
        if self._state == "size":
            return self._size(now)
        if self._state in ("chunk", "length"):
            part, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
            self._left -= len(part)
            self._receiver.body(part, now)
            if self._left == 0 and self._state == "chunk":
                self._state = "after"
            elif self._left == 0 and self._state == "length":
                self._finish(now)
            return True
        if self._state == "after":
            if len(self._buffer) < 2:
                return False
            if self._buffer[:2] != b"\r\n":
                raise ValueError("a chunk is longer than it says")
            self._buffer, self._state = self._buffer[2:], "size"
            return True
        if self._state == "trailer":
            return self._trailer(now)
        part, self._buffer = self._buffer, b""
        self._receiver.body(part, now)
        return True

    def _size(self, now: float) -> bool:
        at = self._buffer.find(b"\r\n")
        if at < 0:
            if len(self._buffer) > 1024:
                raise ValueError("a chunk without a size")
            return False
        self._left = int(self._buffer[:at].split(b";", 1)[0], 16)
        self._buffer = self._buffer[at + 2 :]
        self._state = "chunk" if self._left else "trailer"
        return True

    def _trailer(self, now: float) -> bool:
        at = self._buffer.find(b"\r\n")
        if at < 0:
            return False
        line, self._buffer = self._buffer[:at], self._buffer[at + 2 :]
        if not line:
            self._finish(now)
        return True

    def _head(self, now: float) -> bool:
        assert self._receiver is not None
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ValueError("a header without end")
            return False
        lines, self._buffer = self._buffer[:at].split(b"\r\n"), self._buffer[at + 4 :]
        version, status = lines[0].split(b" ")[:2]
        if not version.startswith(b"HTTP/1."):
            raise ValueError(f"the first line is {lines[0][:60]!r}")
        pairs = (line.partition(b":") for line in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        code = int(status)
        if 100 <= code < 200:
            return True
        connection = headers.get(b"connection", b"").lower()
        self._keep = connection != b"close" and (version == b"HTTP/1.1" or connection == b"keep-alive")
        self._choose_framing(code, headers)
        self._receiver.head(code, headers, now)
        if self._state == "length" and self._left == 0:
            self._finish(now)
        return True

    def _choose_framing(self, code: int, headers: dict[bytes, bytes]) -> None:
        if headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            self._state = "size"
        elif b"content-length" in headers or code == 204:
            self._state, self._left = "length", int(headers.get(b"content-length", b"0"))
        else:
            self._state, self._keep = "until close", False

    def _finish(self, now: float) -> None:
        receiver, self._receiver = self._receiver, None
        if self._keep and not self._buffer:
            self._state, self.idle_since_s = "idle", now
            self._pool.give_back(self)
        else:
            self.close()
        if receiver is not None:
            receiver.end(now)

    def _fail(self, reason: str, now: float) -> None:
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.lost(reason, now)

    def connection_lost(self, error: Exception | None) -> None:
        receiver, state = self._receiver, self._state
        self._receiver, self._state = None, "closed"
        self._pool.forget(self)
        if error is not None and not isinstance(error, OSError):  # raised in data_received: ours, not the server's
            self._pool.on_bug(error)
        if receiver is None:
            return
        now = perf_counter()
        if state == "until close" and error is None:
            receiver.end(now)
            return
        receiver.lost(f"connection closed by the server ({error or 'end of stream'})", now)


class Pool:
    """Connections to one server. Kept ones are used again newest first; a request that fails is never sent again."""

    def __init__(self, url: str, *, fresh: bool, timeout_s: float) -> None:
        """`fresh`: one connection a request."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"the server's URL must look like http://127.0.0.1:8000, got '{url}'")
        try:
            port = parts.port
        except ValueError:
            raise InputError(f"the server's URL must look like http://127.0.0.1:8000, got '{url}'") from None
        self.host, self.port = parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self.netloc = parts.netloc.rpartition("@")[2]
        self.fresh, self.timeout_s = fresh, timeout_s
        self.on_bug: Callable[[Exception], None] = lambda error: None
        """Hears of errors of the client's own; whoever waits for the exchange hears that it was lost."""
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()

    def take(self) -> Connection | None:
        """An idle connection, or None: open one."""
        horizon = perf_counter() - MAX_IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s >= horizon:
                return connection
            connection.close()
        return None

    async def open(self) -> Connection:
        """A new connection; raises OSError (TimeoutError among them)."""
        loop = asyncio.get_running_loop()
        connect = loop.create_connection(lambda: Connection(self), self.host, self.port, ssl=self._ssl)
        _, connection = await asyncio.wait_for(connect, self.timeout_s)
        self._all.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        if self.fresh:
            connection.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    def close(self) -> None:
        for connection in list(self._all):
            connection.close()
        self._idle.clear()
