"""Items sent to a server, a few at a time; what comes back is graded as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import orjson

from fwopt.errors import FwoptError
from fwopt.evals.answers import Answer, answer_of
from fwopt.evals.items import EvalItem
from fwopt.evals.requests import PATHS, body_of
from fwopt.live.call import call
from fwopt.live.endpoint import Endpoint
from fwopt.spec.evals import EvalSettings, Graded

_BUSY = (429, 500, 502, 503, 504)
"""Asked again after a while."""
_WAITS_S = (0.5, 2.0, 8.0)
_SHOWN = 200


class ServerGoneError(FwoptError):
    """The server stopped answering: what was answered is kept."""


async def ask(item: EvalItem, endpoint: Endpoint, settings: EvalSettings) -> Graded:
    """One item's answer, graded. An HTTP error is an answer; ServerGoneError when none comes."""
    status, content, seconds = await _send(body_of(item, endpoint, settings), endpoint, settings)
    text = " ".join(content.decode("utf-8", "replace").split())[:_SHOWN]
    if status != 200:
        return _failed(item, f"HTTP {status}: {text}", seconds)
    try:
        response = orjson.loads(content)
        answer = answer_of(response)
    except ValueError as error:
        return _failed(item, f"{error}"[:_SHOWN], seconds)
    return graded(item, answer, seconds=seconds, raw=response)


def graded(item: EvalItem, answer: Answer, *, seconds: float | None, raw: Any) -> Graded:
    grade = item.grader.grade(answer, item.expected)
    return Graded(
        id=item.name, group=item.group, score=grade.score, why=grade.why, text=answer.text,
        tool_calls=answer.tool_calls, finish_reason=answer.finish_reason, prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens, seconds=seconds, raw=raw,
    )  # fmt: skip


def _failed(item: EvalItem, error: str, seconds: float) -> Graded:
    return Graded(id=item.name, group=item.group, score=0.0, why="no answer", error=error, seconds=seconds)


async def _send(body: bytes, endpoint: Endpoint, settings: EvalSettings) -> tuple[int, bytes, float]:
    """(status, content, seconds of the attempt that is kept)."""
    for wait_s in (*_WAITS_S, None):
        started = perf_counter()
        try:
            status, content = await call(endpoint, "POST", PATHS[settings.api], settings.timeout_s, body=body)
        except TimeoutError:
            return 504, f"no answer within {settings.timeout_s:g} s".encode(), perf_counter() - started
        except OSError as error:
            if wait_s is None:
                reason = error.strerror or str(error)
                raise ServerGoneError(f"{endpoint.url}: no longer answers ({reason})") from None
        else:
            if status not in _BUSY or wait_s is None:
                return status, content, perf_counter() - started
        await asyncio.sleep(wait_s)
    raise AssertionError("unreachable")


async def ask_all(
    items: Sequence[EvalItem],
    endpoint: Endpoint,
    settings: EvalSettings,
    on_answer: Callable[[Graded], None],
    stop: asyncio.Event,
) -> bool:
    """Every item once, `on_answer` in order of arrival; whether it came to the end before `stop`."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            if stop.is_set():
                return
            on_answer(await ask(item, endpoint, settings))

    workers = [asyncio.create_task(worker()) for _ in range(min(settings.concurrency, len(items)))]
    stopped = asyncio.create_task(stop.wait())
    try:
        pending: set[asyncio.Task[Any]] = set(workers)
        while pending and not stop.is_set():
            done, rest = await asyncio.wait({*pending, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
            pending = rest - {stopped}
        return not pending
    finally:
        for task in (*workers, stopped):
            task.cancel()
        await asyncio.gather(*workers, stopped, return_exceptions=True)
