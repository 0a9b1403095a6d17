"""The connection to the server behind the recorder."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

CONNECT_S = 10.0
_IDLE_S = 4.0
"""Idle connections are dropped after this; uvicorn, and so vLLM and SGLang, closes its end after five seconds."""
_HEADER_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
_NO_AUTO = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class UnreachableError(Exception):
    """No reply; the text names the cause for the client and holds nothing of the request."""


Body = bytes | AsyncIterable[bytes] | None
"""Bytes can be sent again, a stream cannot."""


class Upstream:
    def __init__(self, url: str) -> None:
        self.url = url
        self._pooled = self._session(force_close=False)
        self._fresh = self._session(force_close=True)

    def _session(self, *, force_close: bool) -> aiohttp.ClientSession:
        keep: dict[str, Any] = {} if force_close else {"keepalive_timeout": _IDLE_S}
        traces = aiohttp.TraceConfig()
        traces.on_connection_reuseconn.append(_mark_reused)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=force_close, **keep),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTO,
            trace_configs=[traces],
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            requote_redirect_url=False,
        )

    async def send(self, method: str, path: str, headers: CIMultiDict[str], body: Body) -> aiohttp.ClientResponse:
        """The head of the reply; raises UnreachableError.

        Where a kept-alive connection turns out to be closed, the request goes on a new one, if its body is at hand.
        """
        used = SimpleNamespace(reused=False)
        try:
            return await self._send(self._pooled, method, path, headers, body, used)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if not used.reused or not (body is None or isinstance(body, bytes)):
                raise UnreachableError(_cause(error)) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(_cause(error)) from None
        try:
            return await self._send(self._fresh, method, path, headers, body, used)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(_cause(error)) from None

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        headers: CIMultiDict[str],
        body: Body,
        used: SimpleNamespace,
    ) -> aiohttp.ClientResponse:
        data: Any = body
        if isinstance(body, bytes) and len(body) > _PIECE_BYTES:
            data = _pieces(body)
        url = URL(self.url + path, encoded=True)
        return await session.request(
            method, url, headers=headers, data=data, allow_redirects=False, trace_request_ctx=used
        )

    async def models(self) -> list[dict[str, Any]]:
        """What the server lists; empty when it does not tell without a key."""
        headers = CIMultiDict({"Accept": "application/json"})
        try:
            async with await self.send("GET", "/v1/models", headers, None) as response:
                if response.status != 200 or response.headers.get("Content-Encoding"):
                    return []
                row = await response.json(content_type=None)
        except (UnreachableError, aiohttp.ClientError, TimeoutError, ValueError):
            return []
        data = row.get("data") if isinstance(row, dict) else None
        return [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []

    async def close(self) -> None:
        await self._pooled.close()
        await self._fresh.close()


async def _mark_reused(session: object, context: SimpleNamespace, parameters: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.reused = True


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """So that the socket's pace, not memory, decides how fast a large body goes out."""
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def _cause(error: Exception) -> str:
    """Without the request's address, whose query may hold a key."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    if isinstance(error, TimeoutError):
        return f"no connection within {CONNECT_S:g} s"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer"
    return type(error).__name__
