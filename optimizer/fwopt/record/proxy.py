"""The proxy: every byte goes through as it comes; requests that can be recorded are read along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict

from fwopt.record.asked import with_usage
from fwopt.record.content import readable_only
from fwopt.record.exchange import Exchange
from fwopt.record.headers import to_client, to_upstream
from fwopt.record.recorder import Recorder
from fwopt.record.upstream import Body, UnreachableError, Upstream
from fwopt.workload.formats.recorded import Api, Cut

_RECORDED: dict[str, Api] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
}
_MODELS_ASKED = 1000
_EVENTS = "text/event-stream"


class Proxy:
    def __init__(self, upstream: Upstream, recorder: Recorder) -> None:
        self._upstream, self._recorder = upstream, recorder
        self._tasks: set[asyncio.Task[object]] = set()
        self._listed: set[str] = set()
        self._draining = self._stopping = False
        self.served = 0
        self.failed = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.served += 1
        try:
            api = _api(request)
            return await (self._pass(request) if api is None else self._record(request, api))
        except ConnectionError:
            raise
        except Exception as error:
            self._recorder.report("a request could not be passed on", error)
            raise
        finally:
            self._tasks.discard(task)

    async def _pass(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = to_upstream(request.headers.items())
        try:
            upstream = await self._upstream.send(request.method, request.raw_path, headers, _streamed(request))
        except UnreachableError as error:
            return self._bad_gateway(error)
        return await self._relay(request, upstream, None)

    async def _record(self, request: web.BaseRequest, api: Api) -> web.StreamResponse:
        recorder, arrival_s = self._recorder, self._recorder.clock()
        headers = to_upstream(request.headers.items())
        if "Accept-Encoding" in headers:
            headers["Accept-Encoding"] = readable_only(headers["Accept-Encoding"])
        body = await self._body(request)
        if isinstance(body, list):
            recorder.counts.unread += 1
            return await self._pass_large(request, headers, body)
        coding = headers.get("Content-Encoding")
        exchange = recorder.begin(api, body, coding, arrival_s)
        withhold = False
        if exchange is not None:
            self._list_models(exchange.asked.model)
            withhold = recorder.ask_usage and exchange.asked.usage == "may be asked" and coding in (None, "identity")
        if withhold:
            body = with_usage(body)
            headers["Accept-Encoding"] = "identity"
        headers["Content-Length"] = str(len(body))
        return await self._exchange(request, exchange, headers, body, withhold)

    async def _exchange(
        self,
        request: web.BaseRequest,
        exchange: Exchange | None,
        headers: CIMultiDict[str],
        body: bytes,
        withhold: bool,
    ) -> web.StreamResponse:
        cut: Cut | None = "upstream"
        try:
            upstream = await self._upstream.send(request.method, request.raw_path, headers, body)
            if exchange is not None:
                coding = upstream.headers.get("Content-Encoding")
                withhold = withhold and coding in (None, "identity") and upstream.content_type == _EVENTS
                exchange.begin_reply(upstream.status, upstream.content_type, coding, withhold)
            response = await self._relay(request, upstream, exchange, withhold)
            cut = None
            return response
        except UnreachableError as error:
            return self._bad_gateway(error)
        except _ClientGoneError:
            cut = "client"
            raise
        except asyncio.CancelledError:
            cut = "recorder" if self._stopping else "client"
            raise
        finally:
            if exchange is not None:
                exchange.finish(cut)

    async def _relay(
        self,
        request: web.BaseRequest,
        upstream: aiohttp.ClientResponse,
        exchange: Exchange | None,
        withheld: bool = False,
    ) -> web.StreamResponse:
        """Head and body to the client, chunk by chunk, no faster than it takes them."""
        headers = to_client(
            (key.decode(), value.decode(errors="surrogateescape")) for key, value in upstream.raw_headers
        )
        if withheld:
            headers.pop("Content-Length", None)
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        ended = False
        try:
            writer = await response.prepare(request)
            if writer is not None and upstream.content_type == _EVENTS:
                writer.send_headers()  # now, not with the first event
            await _pump(upstream, response, exchange)
            await response.write_eof()
            ended = True
            if self._draining:
                response.force_close()
        except _UpstreamBrokeError:
            if exchange is not None:
                exchange.finish("upstream")
            self.failed += 1
            if request.transport is not None:
                request.transport.abort()  # the client must not take what came for the whole
        except ConnectionError:
            raise _ClientGoneError from None
        finally:
            if not ended:
                upstream.close()
        return response

    async def _body(self, request: web.BaseRequest) -> bytes | list[bytes]:
        """The whole body; the parts that came so far when it is too large to be read along."""
        size, limit = 0, self._recorder.body_bytes
        parts: list[bytes] = []
        if (request.content_length or 0) > limit:
            return []
        while chunk := await request.content.readany():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                return parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _pass_large(
        self, request: web.BaseRequest, headers: CIMultiDict[str], come: list[bytes]
    ) -> web.StreamResponse:
        try:
            upstream = await self._upstream.send(request.method, request.raw_path, headers, _again(come, request))
        except UnreachableError as error:
            return self._bad_gateway(error)
        return await self._relay(request, upstream, None)

    def _bad_gateway(self, error: UnreachableError) -> web.Response:
        self.failed += 1
        message = f"fwopt record: the server at {self._upstream.url} cannot be reached: {error}"
        body = {"error": {"message": message, "type": "upstream_unreachable", "param": None, "code": 502}}
        return web.Response(status=502, body=orjson.dumps(body), content_type="application/json")

    def _list_models(self, model: str | None) -> None:
        """Ask the server once for each new name whether that is an adapter."""
        if model is not None and model not in self._listed and len(self._listed) < _MODELS_ASKED:
            self._listed.add(model)
            self._recorder.later(self._learn_adapters())

    async def _learn_adapters(self) -> None:
        for card in await self._upstream.models():
            name, parent = card.get("id"), card.get("parent")
            if isinstance(name, str) and isinstance(parent, str):
                self._recorder.adapters[name] = parent

    async def drain(self, timeout_s: float) -> int:
        """Wait for replies under way; how many had to be broken off."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self._stopping = True
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        return len(left)


class _ClientGoneError(ConnectionError):
    """The client closed its connection; the HTTP server expects a ConnectionError and says nothing."""


class _UpstreamBrokeError(Exception):
    """The server's reply ended before its end."""


async def _pump(upstream: aiohttp.ClientResponse, response: web.StreamResponse, exchange: Exchange | None) -> None:
    expected, come = upstream.content_length, 0
    while chunk := await _next(upstream):
        come += len(chunk)
        passed = chunk
        if exchange is not None:
            passed = exchange.feed(chunk, come == expected)
            if exchange.at_end:
                await exchange.end()
        if passed:
            await response.write(passed)
    if exchange is not None:
        await exchange.end()
        if rest := exchange.tail():
            await response.write(rest)


async def _next(upstream: aiohttp.ClientResponse) -> bytes:
    """More of the body, empty at its end; a broken one is told apart from a client that went away."""
    try:
        return await upstream.content.readany()
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        raise _UpstreamBrokeError from None


def _api(request: web.BaseRequest) -> Api | None:
    if request.method != "POST":
        return None
    return next((api for end, api in _RECORDED.items() if request.path.endswith(end)), None)


def _streamed(request: web.BaseRequest) -> Body:
    return request.content if request.body_exists else None


async def _again(come: list[bytes], request: web.BaseRequest) -> AsyncIterator[bytes]:
    """A body of which some was read."""
    for part in come:
        yield part
    while chunk := await request.content.readany():
        yield chunk
