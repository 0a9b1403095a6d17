"""The cheapest server that streams: fixed replies of 20 chunks from timers, written straight to sockets.

    python benchmarks/client_stub.py PORT [GAP_S]

One process on uvloop; all replies that are due within 2 ms are written in one go.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter

import uvloop

CHUNKS = 20
TICK_S = 0.002
_SLOTS = 1 << 12


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_START = b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"stub",'
_TOKEN = _START + b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null}],"usage":null}\n\n'
_USAGE = _START + b'"choices":[],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":20}}\n\n'
_EVENT = _chunk(_TOKEN)


class Reply(asyncio.Protocol):
    """One connection. The number of prompt tokens is the number of commas in the body after `"prompt"`, plus one."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel, self.left, self.buffer, self.last = wheel, 0, b"", b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, end)
        length = int(self.buffer[at + 15 : end].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        prompt = self.buffer[self.buffer.find(b"[", end) : self.buffer.find(b"]", end)].count(b",") + 1
        usage = _chunk(_USAGE % (prompt, prompt + CHUNKS))
        self.last = _EVENT + usage + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.buffer, self.left = b"", CHUNKS
        self.transport.write(_HEAD)
        self.wheel.later(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.left = 0

    def tick(self) -> bool:
        """Write one chunk; whether more follow."""
        self.left -= 1
        if self.left > 0:
            self.transport.write(_EVENT)
        elif self.left == 0:
            self.transport.write(self.last)
        return self.left > 0


class Wheel:
    """Replies by the tick in which their next chunk is due."""

    def __init__(self, gap_s: float) -> None:
        self.slots: list[list[Reply]] = [[] for _ in range(_SLOTS)]
        self.now, self.step = 0, max(round(gap_s / TICK_S), 1)

    def later(self, reply: Reply) -> None:
        self.slots[(self.now + self.step) % _SLOTS].append(reply)

    async def turn(self) -> None:
        started = perf_counter()
        while True:
            due = int((perf_counter() - started) / TICK_S)
            while self.now < due:
                self.now += 1
                replies, self.slots[self.now % _SLOTS] = self.slots[self.now % _SLOTS], []
                self.slots[(self.now + self.step) % _SLOTS] += [reply for reply in replies if reply.tick()]
            await asyncio.sleep(max(started + (self.now + 1) * TICK_S - perf_counter(), 0.001))


async def serve(port: int, gap_s: float) -> None:
    wheel = Wheel(gap_s)
    server = await asyncio.get_running_loop().create_server(lambda: Reply(wheel), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await wheel.turn()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.02))
