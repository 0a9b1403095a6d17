"""One plain HTTP request beside the replay: health, model list, cache reset, an answer as a whole."""

from __future__ import annotations

import asyncio
from time import perf_counter
from urllib.parse import urlsplit

from fwopt.live.endpoint import Endpoint
from fwopt.live.http import Pool

_MOST_BYTES = 4 << 20


class _Whole:
    """A `Receiver` that keeps the body."""

    def __init__(self) -> None:
        self.status, self.content = 0, b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def sent(self, now_s: float) -> None: ...

    def head(self, status: int, headers: dict[bytes, bytes], now_s: float) -> None:
        self.status = status

    def body(self, data: bytes, now_s: float) -> None:
        self.content += data[: _MOST_BYTES - len(self.content)]

    def end(self, now_s: float) -> None:
        self.done.set_result(None)

    def lost(self, reason: str, now_s: float) -> None:
        self.done.set_exception(ConnectionError(reason))


async def call(
    endpoint: Endpoint, method: str, path: str, timeout_s: float = 10.0, *, body: bytes = b""
) -> tuple[int, bytes]:
    """(HTTP status, body); raises OSError when there is no answer. `body`: JSON to send."""
    pool = Pool(endpoint.url, fresh=True, timeout_s=timeout_s)
    receiver = _Whole()
    key = f"Authorization: Bearer {endpoint.api_key}\r\n" if endpoint.api_key else ""
    where = urlsplit(endpoint.url).path.rstrip("/") + path
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"{method} {where} HTTP/1.1\r\nHost: {pool.netloc}\r\nConnection: close\r\n{key}{kind}"
    started = perf_counter()
    try:
        connection = await pool.open()
        connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, receiver)
        await asyncio.wait_for(receiver.done, max(timeout_s - (perf_counter() - started), 0.1))
    finally:
        pool.close()
    return receiver.status, receiver.content
