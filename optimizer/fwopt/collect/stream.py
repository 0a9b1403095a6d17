"""One streamed completion, with the time of every chunk: the only thing the probes ask of an engine.

Prompts are token ids drawn anew for every request, so no prefix cache can know them, and the output length is forced.
Sent and read by the same code as a replay (`fwopt.live`), so that a profile's times are those a replay would see.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from fwopt.errors import FwoptError
from fwopt.live.bodies import FRESH_CONNECTIONS, Messages
from fwopt.live.endpoint import Endpoint
from fwopt.live.http import Pool
from fwopt.live.options import ReplayOptions
from fwopt.live.stream import Event, EventParser, StreamError

TIMEOUT_S = 300.0
"""Without a chunk for so long, the engine hangs."""
_CONNECT_S = 30.0
_ERROR_BYTES = 4096


class ProbeError(FwoptError):
    """The engine did not answer a probe as it should."""


@dataclass(slots=True)
class Stream:
    """What was seen of one request; times of one monotonic clock."""

    sent_s: float
    chunk_s: list[float] = field(default_factory=list)
    tokens: int = 0
    """As the engine counts them at the end."""

    @property
    def first_s(self) -> float:
        return self.chunk_s[0]

    @property
    def per_chunk(self) -> float:
        """Tokens a chunk: above one where the front end merged some."""
        return self.tokens / len(self.chunk_s)

    def tokens_until(self, moment_s: float) -> float:
        """Tokens that had come out by then."""
        return sum(1 for t in self.chunk_s if t <= moment_s) * self.per_chunk


@dataclass(slots=True)
class Prompter:
    """Token ids that repeat in no two prompts beyond chance."""

    vocab_size: int
    seed: int
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def ids(self, tokens: int) -> list[int]:
        """Special tokens lie at the ends of every vocabulary: the middle is used."""
        low, high = self.vocab_size // 10, self.vocab_size * 7 // 10
        return [self._random.randrange(low, high) for _ in range(tokens)]


@dataclass(slots=True)
class Mark:
    """Set when so many chunks are out."""

    chunks: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)


class _Reply:
    """The `Receiver` of one probe."""

    def __init__(self, mark: Mark | None) -> None:
        self.stream, self.problem = Stream(0.0), ""
        self.done = asyncio.Event()
        self.status, self._error = 0, b""
        self._mark, self._parser = mark, EventParser(chat=False)
        self._closing_s: float | None = None

    def sent(self, now_s: float) -> None:
        self.stream.sent_s = now_s

    def head(self, status: int, headers: dict[bytes, bytes], now_s: float) -> None:
        self.status = status

    def body(self, data: bytes, now_s: float) -> None:
        if self.status != 200:
            self._error += data[: _ERROR_BYTES - len(self._error)]
            return
        try:
            for event in self._parser.feed(data):
                self._take(event, now_s)
        except StreamError as error:
            self._end(str(error))

    def _take(self, event: Event, now_s: float) -> None:
        if event.usage is not None:
            self.stream.tokens = event.usage.completion_tokens
        if event.carries_tokens:
            self.stream.chunk_s.append(now_s)
        elif event.finish_reason is not None:
            self._closing_s = now_s
        if self._mark is not None and len(self.stream.chunk_s) >= self._mark.chunks:
            self._mark.reached.set()

    def end(self, now_s: float) -> None:
        if self.status != 200:
            self._end(" ".join(self._error.decode("utf-8", "replace").split())[:200])
            return
        if not self.stream.chunk_s and self._closing_s is not None:  # a lone token without text comes with the end
            self.stream.chunk_s.append(self._closing_s)
        self._end("" if self._parser.done else "the stream ended without [DONE]")

    def lost(self, reason: str, now_s: float) -> None:
        self._end(reason)

    def _end(self, problem: str) -> None:
        self.problem = self.problem or problem
        self.done.set()
        if self._mark is not None:
            self._mark.reached.set()  # whoever waits for it must hear of a failure too


class Asker:
    """Sends probes to one server, each when asked; close it at the end."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = Pool(endpoint.url, fresh=endpoint.engine in FRESH_CONNECTIONS, timeout_s=_CONNECT_S)
        self._messages = Messages(endpoint, ReplayOptions(prefix_caching=False), self._pool.netloc)

    async def complete(self, prompt: list[int], output_tokens: int, mark: Mark | None = None) -> Stream:
        """Send one request and follow it to its end; raises ProbeError."""
        url, reply = self._endpoint.url, _Reply(mark)
        message = self._messages.of(prompt, output_tokens)
        try:
            connection = self._pool.take() or await self._pool.open()
            connection.send(message, reply)
            await self._ended(reply)
        except OSError as error:
            if mark is not None:
                mark.reached.set()
            raise ProbeError(f"{url}: {type(error).__name__}: {error}") from None
        stream = reply.stream
        if reply.status not in (0, 200):
            raise ProbeError(f"{url} answered {reply.status} to a prompt of {len(prompt)} tokens: {reply.problem}")
        if reply.problem:
            raise ProbeError(f"{url}: {reply.problem}, after {len(stream.chunk_s)} chunks")
        if stream.tokens != output_tokens or not stream.chunk_s:
            raise ProbeError(
                f"{url}: {output_tokens} output tokens were asked for and {stream.tokens} came in "
                f"{len(stream.chunk_s)} chunks; the engine has to honour ignore_eos and report usage"
            )
        return stream

    async def _ended(self, reply: _Reply) -> None:
        """Wait for the end; TimeoutError once nothing came for `TIMEOUT_S`."""
        seen = -1
        while not reply.done.is_set():
            if seen == len(reply.stream.chunk_s):
                raise TimeoutError(f"no token for {TIMEOUT_S:g} s after {seen} chunks")
            seen = len(reply.stream.chunk_s)
            try:
                await asyncio.wait_for(reply.done.wait(), TIMEOUT_S)
            except TimeoutError:
                continue

    def close(self) -> None:
        self._pool.close()
