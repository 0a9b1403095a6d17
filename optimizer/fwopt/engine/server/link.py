"""The server's end of the pipe to the engine process: tokens arrive per request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from fwopt.engine.messages import Abort, Add, Counters, Request, Stepped, Token
from fwopt.engine.process import EngineProcess
from fwopt.engine.sequence import Sampling
from fwopt.engine.server.protocol import RequestError


class Link:
    """Lives in the server's event loop."""

    def __init__(self, engine: EngineProcess, on_death: Callable[[], None]) -> None:
        self._engine, self._on_death = engine, on_death
        self._queues: dict[int, asyncio.Queue[Token | None]] = {}
        self._next = 0
        self.alive = True
        self.counters = Counters()
        asyncio.get_running_loop().add_reader(engine.connection.fileno(), self._receive)

    def close(self) -> None:
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().remove_reader(self._engine.connection.fileno())

    def send(self, request: Request) -> None:
        if not self.alive:
            raise RequestError("the engine has ended", status=503)
        self._engine.send(request)

    async def generate(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[list[Token], None]:
        """Tokens as they come, usually one at a time; leaving early aborts the request."""
        id, self._next = self._next, self._next + 1
        queue: asyncio.Queue[Token | None] = asyncio.Queue()
        self._queues[id] = queue
        ended = False
        try:
            self.send(Add(id, prompt, sampling))
            while not ended:
                tokens = [await queue.get()]
                while not queue.empty():
                    tokens.append(queue.get_nowait())
                known = [t for t in tokens if t is not None]
                ended = len(known) < len(tokens) or known[-1].reason is not None
                if known:
                    yield known
                if len(known) < len(tokens):
                    raise RequestError("the engine ended before this request did", status=503)
        finally:
            del self._queues[id]
            if not ended and self.alive:
                self._engine.send(Abort(id))

    def _receive(self) -> None:
        try:
            while self._engine.connection.poll():
                reply = self._engine.receive()
                assert isinstance(reply, Stepped)
                self.counters = reply.counters
                for token in reply.tokens:
                    queue = self._queues.get(token.id)
                    if queue is not None:
                        queue.put_nowait(token)
        except (EOFError, ConnectionResetError):
            self.close()
            for queue in self._queues.values():
                queue.put_nowait(None)
            self._on_death()
