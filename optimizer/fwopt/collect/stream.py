"""One streamed completion, with the time of every chunk: the only thing the probes ask of an engine.

Prompts are token ids drawn anew for every request, so no prefix cache can know them, and the output length is forced.
Sent and read by the same code as a replay (`fwopt.live`), so that a profile's times are those a replay would see.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from time import perf_counter

from fwopt.errors import FwoptError
from fwopt.live.bodies import FRESH_CONNECTIONS, Messages
from fwopt.live.endpoint import Endpoint
from fwopt.live.exchange import Exchange
from fwopt.live.http import Pool
from fwopt.live.options import ReplayOptions
from fwopt.live.rows import MICROSECOND, Rows

TIMEOUT_S = 300.0
"""Without a chunk for so long, the engine hangs."""
_OPTIONS = ReplayOptions(
    prefix_caching=False, first_token_timeout_s=TIMEOUT_S, between_tokens_timeout_s=TIMEOUT_S, connect_timeout_s=30.0
)
_LOOK_S = 1.0
"""Between looks at the timeouts."""


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


class _Probe(Exchange):
    """A probe on its way."""

    __slots__ = ("_mark", "done", "rows")

    def __init__(self, mark: Mark | None) -> None:
        self.rows, self.done = Rows.empty(1), asyncio.Event()
        now = perf_counter()
        super().__init__(0, self.rows, 0.0, now, False, self._over)
        self._mark = mark

    def _token(self, now_s: float) -> None:
        super()._token(now_s)
        if self._mark is not None and len(self.chunk_us) >= self._mark.chunks:
            self._mark.reached.set()

    def _over(self, _: Exchange) -> None:
        self.done.set()
        if self._mark is not None:
            self._mark.reached.set()  # whoever waits for it must hear of a failure too

    @property
    def stream(self) -> Stream:
        times = [self.started_s + us * MICROSECOND for us in self.chunk_us]
        return Stream(float(self.rows.sent_s[0]), times, self.usage.completion_tokens if self.usage else 0)


class Asker:
    """Sends probes to one server, each when asked; close it at the end."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = Pool(
            endpoint.url, fresh=endpoint.engine in FRESH_CONNECTIONS, timeout_s=_OPTIONS.connect_timeout_s
        )
        self._messages = Messages(endpoint, _OPTIONS, self._pool.netloc)

    async def complete(self, prompt: list[int], output_tokens: int, mark: Mark | None = None) -> Stream:
        """Send one request and follow it to its end; raises ProbeError."""
        url, probe = self._endpoint.url, _Probe(mark)
        message = self._messages.of(prompt, output_tokens)
        try:
            probe.connection = self._pool.take() or await self._pool.open()
        except OSError as error:
            probe.lost(f"{type(error).__name__}: {error}", perf_counter())
        else:
            probe.connection.send(message, probe)
            await _ended(probe)
        stream = probe.stream
        if 0 in probe.rows.errors:
            raise ProbeError(
                f"{url}: {probe.rows.errors[0]} (a prompt of {len(prompt)} tokens, {len(stream.chunk_s)} chunks came)"
            )
        if stream.tokens != output_tokens:
            raise ProbeError(
                f"{url}: {output_tokens} output tokens were asked for and {stream.tokens} came in "
                f"{len(stream.chunk_s)} chunks; the engine has to honour ignore_eos and report usage"
            )
        return stream

    def close(self) -> None:
        self._pool.close()


async def _ended(probe: _Probe) -> None:
    """Wait for the end, or for a timeout of `_OPTIONS`."""
    while not probe.done.is_set():
        try:
            await asyncio.wait_for(probe.done.wait(), _LOOK_S)
        except TimeoutError:
            reason = probe.overdue(_OPTIONS, perf_counter())
            if reason is not None:
                probe.time_out(reason, perf_counter())
