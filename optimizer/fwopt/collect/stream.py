"""One streamed completion, with the time of every chunk: the only thing the probes ask of an engine.

Prompts are token ids drawn anew for every request, so no prefix cache can know them, and the output length is forced.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from fwopt.errors import FwoptError
from fwopt.live.endpoint import Endpoint

TIMEOUT_S = 300.0
"""Without a chunk for so long, the engine hangs."""


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


def body(endpoint: Endpoint, prompt: list[int], output_tokens: int) -> dict[str, Any]:
    """The request; `ignore_eos` is understood by vLLM, SGLang, llama.cpp and the reference engine."""
    content: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if endpoint.engine == "llamacpp":
        return content | {"cache_prompt": False}
    return content | {"min_tokens": output_tokens}


@dataclass(slots=True)
class Mark:
    """Set when so many chunks are out."""

    chunks: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)


async def complete(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    prompt: list[int],
    output_tokens: int,
    mark: Mark | None = None,
) -> Stream:
    """Send one request and follow it to its end."""
    payload = json.dumps(body(endpoint, prompt, output_tokens)).encode()
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    stream = Stream(time.perf_counter())
    url = f"{endpoint.url}/v1/completions"
    try:
        async with session.post(url, data=payload, headers=headers) as answer:
            if answer.status != 200:
                words = " ".join((await answer.text()).split())[:200]
                raise ProbeError(f"{url} answered {answer.status} to a prompt of {len(prompt)} tokens: {words}")
            async for line in answer.content:
                _take(line, stream, mark)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ProbeError(f"{url}: {type(error).__name__} after {len(stream.chunk_s)} chunks: {error}") from None
    finally:
        if mark is not None:
            mark.reached.set()  # whoever waits for it must hear of a failure too
    if stream.tokens != output_tokens or not stream.chunk_s:
        raise ProbeError(
            f"{url}: {output_tokens} output tokens were asked for and {stream.tokens} came in {len(stream.chunk_s)} "
            "chunks; the engine has to honour ignore_eos and report usage"
        )
    return stream


def _take(line: bytes, stream: Stream, mark: Mark | None) -> None:
    """One line of the event stream. llama.cpp ends with a chunk that holds no token; a lone token may have no text."""
    now = time.perf_counter()
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return
    try:
        content = json.loads(line[6:])
        if content.get("usage"):
            stream.tokens = int(content["usage"]["completion_tokens"])
        for choice in content.get("choices") or ():
            if choice["finish_reason"] is None or choice["text"] or not stream.chunk_s:
                stream.chunk_s.append(now)
    except (ValueError, KeyError, TypeError):
        raise ProbeError(f"not a completions event: {line[:120]!r}") from None
    if mark is not None and len(stream.chunk_s) >= mark.chunks:
        mark.reached.set()


def open_session() -> aiohttp.ClientSession:
    """One connection a request: llama.cpp drops those that are kept alive."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_read=TIMEOUT_S))
