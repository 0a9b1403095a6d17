"""An OpenAI-compatible server that serves no model: paced answers, exact counts, and faults on demand.

    python stub.py PORT '{"gap_s": 0.01, "fault": "hang", "fault_every": 3}'

It speaks HTTP through aiohttp, so that the client's own HTTP is held against another implementation. Everything that it
was sent stands under GET /seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from aiohttp import web

DEFAULTS: dict[str, Any] = {
    "model": "stub",
    "owner": "stub",
    "first_s": 0.0,
    "gap_s": 0.0,
    "tokens_per_event": 1,
    "counted": False,
    "usage": True,
    "miscount": 0,
    "template_tokens": 7,
    "crlf": False,
    "pieces": 0,
    "fault": None,
    "fault_every": 1,
    "fault_after": 2,
    "reset_status": 200,
}
"""`pieces`: bytes per write, to cut events anywhere; `fault_after`: events before a fault in the stream."""


class Stub:
    def __init__(self, settings: dict[str, Any]) -> None:
        unknown = settings.keys() - DEFAULTS.keys()
        assert not unknown, unknown
        self.s = DEFAULTS | settings
        self.seen: list[dict[str, Any]] = []
        self.resets = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/seen", self.show)
        app.router.add_post("/reset_prefix_cache", self.reset)
        app.router.add_post("/flush_cache", self.reset)
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"data": [{"id": self.s["model"], "owned_by": self.s["owner"], "max_model_len": 4096}]}
        )

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": self.seen, "resets": self.resets})

    async def reset(self, request: web.Request) -> web.Response:
        self.resets += 1
        return web.Response(status=self.s["reset_status"])

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        chat = request.path.endswith("chat/completions")
        self.seen.append({**body, "connection": request.headers.get("Connection"), "path": request.path})
        fault = self.s["fault"] if len(self.seen) % self.s["fault_every"] == 0 else None
        if body["model"] != self.s["model"]:
            return web.json_response({"error": {"message": f"The model `{body['model']}` does not exist."}}, status=404)
        if fault == "500":
            return web.json_response({"error": {"message": "engine is dead"}}, status=500)
        if fault == "429":
            return web.Response(status=429, text="slow down", headers={"Retry-After": "3"})
        if fault == "kill":
            os._exit(9)
        if fault == "no answer":
            await asyncio.sleep(3600)
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "html":
            return web.Response(text="<html>a proxy's page</html>", content_type="text/html")
        return await self.stream(request, body, chat, fault)

    async def stream(
        self, request: web.Request, body: dict[str, Any], chat: bool, fault: str | None
    ) -> web.StreamResponse:
        s = self.s
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        prompt, output = self.count(body, chat), body["max_tokens"]
        if s["first_s"]:
            await asyncio.sleep(s["first_s"])
        if chat:
            await self.write(response, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        sent = 0
        while sent < output:
            if sent:
                await asyncio.sleep(s["gap_s"])
            if fault is not None and sent >= s["fault_after"]:
                await self.fail(request, response, fault)
                return response
            sent = min(sent + s["tokens_per_event"], output)
            finish = "length" if sent == output else None
            text = " word" * 1
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            event: dict[str, Any] = {"id": "x", "choices": [choice]}
            if s["counted"]:
                event["usage"] = {"prompt_tokens": prompt, "completion_tokens": sent}
            await self.write(response, event)
        if s["usage"] and body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": prompt, "completion_tokens": output + s["miscount"]}
            await self.write(response, {"choices": [], "usage": usage})
        await self.raw(response, b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def count(self, body: dict[str, Any], chat: bool) -> int:
        if chat:
            return len(body["messages"][0]["content"].split()) + int(self.s["template_tokens"])
        prompt = body["prompt"]
        return len(prompt) if isinstance(prompt, list) else len(prompt.split())

    async def fail(self, request: web.Request, response: web.StreamResponse, fault: str) -> None:
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "kill in stream":
            os._exit(9)
        elif fault == "malformed":
            await self.raw(response, b'data: {"choices": [\n\n')
        elif fault == "error event":
            await self.write(response, {"error": {"message": "out of memory"}})
        elif fault == "early end":
            await response.write_eof()
        elif fault == "abort":
            assert request.transport is not None
            request.transport.abort()
        else:
            raise AssertionError(fault)

    async def write(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await self.raw(response, b"data: " + json.dumps(event).encode() + b"\n\n")

    async def raw(self, response: web.StreamResponse, data: bytes) -> None:
        data = data.replace(b"\n", b"\r\n") if self.s["crlf"] else data
        step = self.s["pieces"] or len(data)
        for at in range(0, len(data), step):
            await response.write(data[at : at + step])
            if self.s["pieces"]:
                await asyncio.sleep(0)


def main() -> None:
    port, settings = int(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}

    async def serve() -> None:
        runner = web.AppRunner(Stub(settings).app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
