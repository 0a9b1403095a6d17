"""An OpenAI-compatible server without a model, in a process of its own: replies follow from the request, so that a test
knows every byte that a client must see. `python stub_server.py PORT`; port 0 prints the one it got."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from itertools import count

from aiohttp import web

_NUMBER = count()
SEEN: list[dict] = []
"""What arrived: method, path, headers, body; read by GET /seen."""


def words(number: int) -> list[str]:
    return [f" w{i}" for i in range(number)]


def prompt_tokens(body: dict) -> int:
    return max(len(json.dumps(body.get("messages") or body.get("prompt") or body.get("input"))) // 4, 1)


async def answer(request: web.Request) -> web.StreamResponse:
    raw = await request.read()
    SEEN.append(
        {"path": request.path_qs, "headers": dict(request.headers), "body": raw[:10_000].decode("utf-8", "replace")}
    )
    try:
        body = json.loads(raw)
    except ValueError:
        return web.json_response({"error": {"message": "no JSON"}}, status=400)
    how = body.get("stub", {})
    if delay := how.get("delay_s"):
        await asyncio.sleep(delay)
    if status := how.get("status"):
        return web.json_response({"error": {"message": "as asked"}}, status=status)
    made = words(body.get("max_tokens") or body.get("max_completion_tokens") or body.get("max_output_tokens") or 5)
    usage = {"prompt_tokens": prompt_tokens(body), "completion_tokens": len(made)}
    usage["total_tokens"] = sum(usage.values())
    kind = "chat" if request.path.endswith("chat/completions") else request.path.rpartition("/")[2]
    if body.get("stream"):
        return await streamed(request, body, kind, made, usage, how)
    return whole(request, body, kind, made, usage, how)


def whole(request, body, kind, made, usage, how) -> web.Response:
    text, number = "".join(made), next(_NUMBER)
    if kind == "responses":
        item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
        usage = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
        reply = {"id": f"resp-{number}", "status": "completed", "output": [item], "usage": usage}
    elif kind == "chat":
        message = {"role": "assistant", "content": text}
        if calls := how.get("tool_calls"):
            message["tool_calls"] = [
                {"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": json.dumps({"a": i})}}
                for i in range(calls)
            ]
        reply = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    else:
        reply = {"choices": [{"index": 0, "text": text, "finish_reason": "length"}], "usage": usage}
    if how.get("no_usage"):
        del reply["usage"]
    data, headers = json.dumps(reply).encode(), {}
    if "gzip" in request.headers.get("Accept-Encoding", "") and how.get("compress"):
        data, headers = gzip.compress(data), {"Content-Encoding": "gzip"}
    return web.Response(body=data, content_type="application/json", headers=headers)


def events(body, kind, made, usage, how) -> list[bytes]:
    rows: list[dict | None] = []
    extra = {"usage": None} if how.get("null_usage") and body.get("stream_options") else {}
    if kind == "responses":
        item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "".join(made)}]}
        counts = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
        rows += [{"type": "response.output_text.delta", "delta": word} for word in made]
        response = {"id": f"resp-{next(_NUMBER)}", "status": "completed", "output": [item], "usage": counts}
        rows.append({"type": "response.completed", "response": response})
    else:
        if kind == "chat":
            rows.append({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for i, word in enumerate(made):
            piece = {"delta": {"content": word}} if kind == "chat" else {"text": word}
            rows.append(
                {"choices": [{"index": 0, "finish_reason": "stop" if i == len(made) - 1 else None, **piece}], **extra}
            )
        if (body.get("stream_options") or {}).get("include_usage"):
            rows.append({"choices": [], "usage": usage})
        rows.append(None)
    end = "\r\n\r\n" if how.get("crlf") else "\n\n"
    return [
        f"data: {'[DONE]' if row is None else json.dumps(row, separators=(',', ':'))}{end}".encode() for row in rows
    ]


async def streamed(request, body, kind, made, usage, how) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Stub": "yes"})
    await response.prepare(request)
    data = b"".join(events(body, kind, made, usage, how))
    pieces = events(body, kind, made, usage, how)
    if cut := how.get("cut_bytes"):
        pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    for number, piece in enumerate(pieces):
        if how.get("break_after") == number:
            request.transport.abort()
            return response
        await response.write(piece)
        await asyncio.sleep(how.get("gap_s", 0))
    await response.write_eof()
    return response


async def echo(request: web.Request) -> web.StreamResponse:
    """Any other path: says what came, streams the body back."""
    headers = {f"X-Was-{name}": value for name, value in request.headers.items() if name != "X-Was"}
    headers |= {
        "X-Method": request.method,
        "X-Path": request.path_qs,
        "Connection": "close, X-Hop",
        "X-Hop": "secret hop",
    }
    if request.method == "HEAD":
        return web.Response(headers=headers | {"Content-Length": "1234"}, content_type="text/plain")
    response = web.StreamResponse(status=203, headers=headers | {"Set-Cookie": "a=b"})
    response.content_type = "application/x-echo"
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


async def models(request: web.Request) -> web.Response:
    cards = [{"id": "base"}, {"id": "tuned", "parent": "base"}]
    return web.json_response({"data": cards})


async def seen(request: web.Request) -> web.Response:
    return web.json_response(SEEN)


async def main(port: int) -> None:
    app = web.Application(client_max_size=1 << 30)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        app.router.add_post(path, answer)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/seen", seen)
    app.router.add_route("*", "/{rest:.*}", echo)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.platform != "win32":
        import uvloop

        uvloop.run(main(int(sys.argv[1])))
