"""The HTTP request of each prompt, and what each engine understands to make the output exactly as long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.live.options import ReplayOptions
from fwopt.live.prompts import Prompts
from fwopt.spec.engine import EngineName


def _at_least(tokens: int, options: ReplayOptions) -> dict[str, Any]:
    return {"ignore_eos": True, "min_tokens": tokens}


def _llamacpp(tokens: int, options: ReplayOptions) -> dict[str, Any]:
    return {"ignore_eos": True, "n_predict": tokens, "cache_prompt": options.prefix_caching}


FORCING: dict[EngineName, Callable[[int, ReplayOptions], dict[str, Any]]] = {
    "vllm": _at_least,
    "sglang": _at_least,
    "fwopt": _at_least,
    "llamacpp": _llamacpp,
}
"""Engines whose output length can be forced, and how. They are also those that take token ids as a prompt."""
FRESH_CONNECTIONS: frozenset[EngineName] = frozenset({"llamacpp"})
"""Engines that drop kept connections under a request."""
_COUNTING: frozenset[EngineName] = frozenset({"vllm", "sglang"})


class Messages:
    """Whole HTTP messages that ask one server for completions of a forced length, streamed and greedy."""

    def __init__(self, endpoint: Endpoint, options: ReplayOptions, netloc: str) -> None:
        self.endpoint, self._options = endpoint, options
        self._fixed: dict[str, Any] = {"model": endpoint.model, "stream": True, "temperature": 0}
        counted = options.usage_per_chunk and endpoint.engine in _COUNTING
        self._fixed["stream_options"] = {"include_usage": True} | ({"continuous_usage_stats": True} if counted else {})
        self._head = head(endpoint, netloc)

    def of(self, prompt: Any, tokens: int) -> bytes:
        """`prompt`: text, or token ids where the engine takes them."""
        endpoint = self.endpoint
        body = dict(self._fixed)
        body["max_tokens"] = tokens
        if endpoint.engine is not None:
            body |= FORCING[endpoint.engine](tokens, self._options)
        if endpoint.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        packed = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return b"%s%d\r\n\r\n%s" % (self._head, len(packed), packed)


class Bodies:
    """The messages of a workload, ready for the socket."""

    def __init__(
        self, endpoint: Endpoint, prompts: Prompts, options: ReplayOptions, *, text: bool, netloc: str
    ) -> None:
        self._prompts, self._text, self.workload = prompts, text, prompts.workload
        self._messages = Messages(endpoint, options, netloc)

    @property
    def endpoint(self) -> Endpoint:
        return self._messages.endpoint

    def message(self, request: int) -> bytes:
        prompt: Any = self._prompts.text(request) if self._text else self._prompts.tokens(request)
        return self._messages.of(prompt, int(self._prompts.workload.output_tokens[request]))

    def probe(self, text: str) -> bytes:
        """A request for one token, to see how many tokens the chat template adds."""
        return self._messages.of(text, 1)


def head(endpoint: Endpoint, netloc: str) -> bytes:
    """The header up to the value of Content-Length."""
    base = urlsplit(endpoint.url).path.rstrip("/")
    path = "/v1/chat/completions" if endpoint.api == "chat" else "/v1/completions"
    lines = [
        f"POST {base}{path} HTTP/1.1",
        f"Host: {netloc}",
        "User-Agent: fwopt",
        "Accept: text/event-stream",
        "Content-Type: application/json",
    ]
    if endpoint.engine in FRESH_CONNECTIONS:
        lines.append("Connection: close")
    if endpoint.api_key is not None:
        lines.append(f"Authorization: Bearer {endpoint.api_key}")
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise InputError("the server's URL and key must be printable ASCII")
    return "\r\n".join([*lines, "Content-Length: "]).encode("ascii")
