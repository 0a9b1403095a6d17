"""The routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

import fwopt
from fwopt.engine.messages import ResetPrefixCache
from fwopt.engine.sequence import Sampling
from fwopt.engine.server.link import Link
from fwopt.engine.server.protocol import ChatRequest, CompletionRequest, RequestError, parse
from fwopt.engine.server.replies import DONE, Form, Usage, prometheus
from fwopt.engine.server.text import ChatTemplate, Detokenizer, StopStrings, Tokenizer
from fwopt.errors import InputError

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Served:
    """What the server says of its model."""

    name: str
    max_model_len: int
    vocab_size: int
    end_ids: frozenset[int]
    tokenizer: Tokenizer
    template: ChatTemplate | None


class Routes:
    def __init__(self, served: Served, link: Link) -> None:
        self._served, self._link = served, link

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_errors], client_max_size=1 << 28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/reset_prefix_cache", self._reset)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._link.alive else 503)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self._served.name, "object": "model", "owned_by": "fwopt"}
        model |= {"max_model_len": self._served.max_model_len}  # type: ignore[dict-item]
        return web.json_response({"object": "list", "data": [model]})

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": fwopt.__version__})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=prometheus(self._link.counters), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _reset(self, request: web.Request) -> web.Response:
        self._link.send(ResetPrefixCache())
        return web.Response()

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(CompletionRequest, await request.read())
        self._check_model(wanted.model)
        prompt = self._tokens(wanted.single_prompt())
        sampling = self._sampling(wanted, len(prompt), wanted.max_tokens)
        return await self._answer(request, wanted, prompt, sampling, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(ChatRequest, await request.read())
        self._check_model(wanted.model)
        if self._served.template is None:
            raise RequestError("this model has no chat template; use /v1/completions")
        text = self._served.template.render(wanted.messages)
        prompt = self._served.tokenizer.encode(text, special=False)
        limit = wanted.max_completion_tokens or wanted.max_tokens
        sampling = self._sampling(wanted, len(prompt), limit)
        return await self._answer(request, wanted, prompt, sampling, chat=True)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._served.name:
            raise RequestError(
                f"the model '{name}' does not exist; this server has '{self._served.name}'",
                status=404, field="model", code="model_not_found",
            )  # fmt: skip

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        tokens = self._served.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt
        if not tokens:
            raise RequestError("prompt must have at least one token, got none", field="prompt")
        wrong = next((t for t in tokens if not 0 <= t < self._served.vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"prompt: token ids go from 0 to {self._served.vocab_size - 1}, got {wrong}", field="prompt"
            )
        return tokens

    def _sampling(
        self, wanted: CompletionRequest | ChatRequest, prompt_tokens: int, max_tokens: int | None
    ) -> Sampling:
        room = self._served.max_model_len - prompt_tokens
        if room < 1 or (max_tokens is not None and max_tokens > room):
            raise RequestError(
                f"prompt and max_tokens must fit in {self._served.max_model_len} tokens, "
                f"got {prompt_tokens} and {max_tokens or 1}",
                code="context_length_exceeded",
            )
        limit = room if max_tokens is None else max_tokens
        if wanted.min_tokens > limit:
            raise RequestError(
                f"min_tokens must be at most max_tokens, got {wanted.min_tokens} > {limit}", field="min_tokens"
            )
        return wanted.sampling(limit, self._served.end_ids)

    async def _answer(
        self, request: web.Request, wanted: CompletionRequest | ChatRequest, prompt: list[int], sampling: Sampling,
        *, chat: bool,
    ) -> web.StreamResponse:  # fmt: skip
        form, usage = Form(chat, self._served.name), Usage(len(prompt))
        parts = self._parts(prompt, sampling, wanted.stops, usage)
        if wanted.stream:
            return await _stream(request, form, parts, usage if wanted.include_usage else None)
        text, reason = "", "length"
        async with contextlib.aclosing(parts):
            async for batch in parts:
                for piece, ended in batch:
                    text += piece
                    reason = ended or reason
        return web.json_response(form.whole(text, reason, usage))

    async def _parts(
        self, prompt: list[int], sampling: Sampling, stop_strings: list[str], usage: Usage
    ) -> AsyncGenerator[list[tuple[str, str | None]], None]:
        """(text, finish reason) of each token, in groups that arrived together."""
        words, stops = Detokenizer(self._served.tokenizer), StopStrings(stop_strings)
        tokens = self._link.generate(prompt, sampling)
        async with contextlib.aclosing(tokens):
            async for group in tokens:
                parts: list[tuple[str, str | None]] = []
                for token in group:
                    usage.completion_tokens += 1
                    usage.cached_tokens = token.cached_tokens
                    last = token.reason is not None
                    ends_text = token.reason == "stop"  # the token that ended it is no text
                    text = words.add(token.token, last) if not ends_text else ""
                    text = stops.add(text, last)
                    parts.append((text, "stop" if stops.hit else token.reason))
                    if stops.hit:
                        break
                yield parts
                if stops.hit:
                    return


async def _stream(
    request: web.Request, form: Form, parts: AsyncGenerator[list[tuple[str, str | None]], None], usage: Usage | None
) -> web.StreamResponse:
    """Server-sent events, one a token. The first token decides whether there is an answer at all."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    async with contextlib.aclosing(parts):
        async for group in parts:
            data = [form.part(text, reason) for text, reason in group]
            if not response.prepared:
                await response.prepare(request)
                data = [form.first() or b"", *data]
            await response.write(b"".join(data))
    await response.write((form.usage(usage) if usage is not None else b"") + DONE)
    await response.write_eof()
    return response


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Errors as JSON, in OpenAI's form."""
    try:
        return await handler(request)
    except RequestError as error:
        failure = error
    except InputError as error:
        failure = RequestError(str(error))
    except web.HTTPException as error:
        failure = RequestError(f"{request.method} {request.path}: {error.reason}", status=error.status)
    except asyncio.CancelledError:
        raise
    return web.json_response(failure.body(), status=failure.status)
