"""An OpenAI-compatible server whose answers the test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str, dict[str, Any]], Any]
"""(the last message or prompt, the whole request) -> text, a message, or (HTTP status, text)."""


class Answering(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Reply, token_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.token_s = reply, token_s
        self.seen: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Answering
    protocol_version = "HTTP/1.1"

    def log_message(self, *details: object) -> None: ...

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if not self.path.startswith("/v1/"):
            return self.send(404, {})
        self.server.seen.append(body)
        if body.get("stream"):
            return self.stream(body)
        prompt = body.get("prompt")
        asked = (
            body["messages"][-1]["content"] if "messages" in body else prompt[0] if isinstance(prompt, list) else prompt
        )
        reply = self.server.reply(asked, body)
        if isinstance(reply, tuple):
            return self.send(reply[0], {"error": {"message": reply[1]}})
        message = reply if isinstance(reply, dict) else {"role": "assistant", "content": reply}
        choice: dict[str, Any] = {"index": 0}
        choice |= {"message": message} if "messages" in body else {"text": message["content"]}
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        return self.send(200, {"choices": [choice | {"finish_reason": "stop"}], "usage": usage})

    def send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        tokens = body["max_tokens"]
        for i in range(tokens):
            time.sleep(self.server.token_s)
            finish = "length" if i == tokens - 1 else None
            self.event({"choices": [{"index": 0, "text": " w", "finish_reason": finish}]})
        self.event({"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


@contextmanager
def answering(reply: Reply, token_s: float = 0.0) -> Iterator[Answering]:
    server = Answering(reply, token_s)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
