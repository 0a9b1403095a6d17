"""`replay`: send a workload to a server as a load says, and write down what came back."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from fwopt import __version__
from fwopt.errors import InputError
from fwopt.live import cache as caches
from fwopt.live import vocabulary as vocabularies
from fwopt.live.bodies import FORCING, FRESH_CONNECTIONS, Bodies
from fwopt.live.endpoint import Endpoint
from fwopt.live.exchange import Exchange
from fwopt.live.files import ReplayWriter, wanted_line
from fwopt.live.http import Pool
from fwopt.live.load import ClosedLoop, Load, schedule
from fwopt.live.options import ReplayOptions
from fwopt.live.order import Order
from fwopt.live.problems import Lag
from fwopt.live.prompts import Prompts
from fwopt.live.result import ClientEnvironment, EndpointFacts, Replay, ReplayEnd, ReplayHeader
from fwopt.live.rows import Rows
from fwopt.live.sender import Sender
from fwopt.live.vocabulary import Vocabulary
from fwopt.metrics.records import FINISHED
from fwopt.workload.columns import Workload

Progress = Callable[[int, int], None]
"""(requests whose fate is known, requests in all); called some fifty times a second."""
_PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is settled before the first request."""

    endpoint: Endpoint
    workload: Workload
    load: Load
    options: ReplayOptions
    requests: int
    text: bool
    vocabulary: Vocabulary
    reserved: int
    salt: str

    def pool(self) -> Pool:
        fresh = self.endpoint.engine in FRESH_CONNECTIONS
        return Pool(self.endpoint.url, fresh=fresh, timeout_s=self.options.connect_timeout_s)

    def bodies(self, netloc: str) -> Bodies:
        prompts = Prompts(self.workload, self.vocabulary, self.salt, reserved=self.reserved)
        return Bodies(self.endpoint, prompts, self.options, text=self.text, netloc=netloc)

    @property
    def form(self) -> Literal["ids", "text"]:
        return "text" if self.text else "ids"


async def replay(
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    options: ReplayOptions | None = None,
    *,
    stop: asyncio.Event | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Send the workload's requests as `load` says; every one has a fate in the result.

    Setting `stop` ends the run early with what there is, marked as interrupted.
    """
    options, stop = options or ReplayOptions(), stop or asyncio.Event()
    plan = await _prepared(endpoint, workload, load, options)
    failures = 0
    if options.cache == "warm":
        rows, _, _, _ = await _send(plan, stop, progress, None)
        failures = int((rows.status != FINISHED).sum())
    state = await caches.prepare(endpoint, options, plan.salt)
    header = _header(plan, state, failures)
    prompts, outputs = (c[: plan.requests] for c in (workload.prompt_tokens, workload.output_tokens))
    writer = ReplayWriter(options.stream_to) if options.stream_to is not None else None
    try:
        if writer is not None:
            writer.add(header.model_dump(mode="json"))
            writer.add(wanted_line(prompts, outputs))
            writer.flush()
        rows, complete, lags, duration_s = await _send(plan, stop, progress, writer)
        clock_lag = Lag.of(np.frombuffer(lags, np.float32).astype(np.float64))
        end = ReplayEnd(complete=complete, duration_s=duration_s, clock_lag=clock_lag)
        if writer is not None:
            writer.finish(end)
    finally:
        if writer is not None:
            writer.abandon()
    return Replay(header, prompts, outputs, rows, end)


async def _prepared(endpoint: Endpoint, workload: Workload, load: Load, options: ReplayOptions) -> _Plan:
    requests = options.requests or len(workload)
    schedule(load, workload, requests)  # refuses what cannot be sent before anything is
    text = _sends_text(endpoint, options)
    vocabulary = _vocabulary(endpoint, options, text)
    plan = _Plan(
        endpoint=endpoint,
        workload=workload,
        load=load,
        options=options,
        requests=requests,
        text=text,
        vocabulary=vocabulary,
        reserved=vocabulary.added_tokens if text and endpoint.api == "completions" else 0,
        salt=caches.choose_salt(options),
    )
    return replace(plan, reserved=await _template_tokens(plan)) if endpoint.api == "chat" else plan


def _sends_text(endpoint: Endpoint, options: ReplayOptions) -> bool:
    if endpoint.api == "chat":
        if options.prompts == "ids":
            raise InputError("the chat API takes text, not token ids; use the completions API, or text prompts")
        return True
    if options.prompts is not None:
        return options.prompts == "text"
    return endpoint.engine is None


def _vocabulary(endpoint: Endpoint, options: ReplayOptions, text: bool) -> Vocabulary:
    if text:
        if options.tokenizer is None:
            raise InputError(
                f"{endpoint.url} is sent text prompts ({'chat API' if endpoint.api == 'chat' else 'unknown engine'}): "
                "name the model's tokenizer.json with --tokenizer, or the engine with --engine"
            )
        return vocabularies.words_of(options.tokenizer)
    if options.vocabulary is not None:
        return vocabularies.given(*options.vocabulary)
    return vocabularies.from_tokenizer(options.tokenizer) if options.tokenizer else vocabularies.assumed()


async def _template_tokens(plan: _Plan) -> int:
    """Tokens that the chat template puts around a message, by the server's own count."""
    pool = plan.pool()
    text = "".join(plan.vocabulary.texts[:_PROBE_TOKENS])
    own = len(plan.vocabulary.tokenizer.encode(text, add_special_tokens=False).ids)
    rows, done = Rows.empty(1), asyncio.Event()
    exchange = Exchange(0, rows, 0.0, 0.0, True, lambda _: done.set())
    try:
        connection = await pool.open()
        connection.send(plan.bodies(pool.netloc).probe(text), exchange)
        await asyncio.wait_for(done.wait(), plan.options.first_token_timeout_s)
    except OSError as error:
        reason = str(error) or f"no answer within {plan.options.first_token_timeout_s:g} s"
        raise InputError(f"{plan.endpoint.url}: cannot ask for the length of the chat template: {reason}") from None
    finally:
        pool.close()
    if exchange.usage is None:
        reason = rows.errors.get(0, "it tells no token counts")
        raise InputError(f"{plan.endpoint.url}: cannot ask for the length of the chat template: {reason}")
    return exchange.usage.prompt_tokens - own


async def _send(
    plan: _Plan, stop: asyncio.Event, progress: Progress | None, writer: ReplayWriter | None
) -> tuple[Rows, bool, array[float], float]:
    """(rows, whether all were sent, clock lags, seconds) of one pass over the requests."""
    n, pool = plan.requests, plan.pool()
    rows = Rows.empty(n)
    order = Order(plan.workload, n, schedule(plan.load, plan.workload, n), plan.options.think_s)

    def on_ended(request: int, chunk_us: array[int], running: array[int]) -> None:
        if writer is None:
            rows.keep_chunks(request, chunk_us, running)
        else:
            writer.add(rows.row(request, chunk_us, running))

    def on_beat() -> None:
        if writer is not None:
            writer.beat()
        if progress is not None:
            progress(n - order.unresolved, n)

    concurrency = plan.load.concurrency if isinstance(plan.load, ClosedLoop) else None
    sender = Sender(
        order, rows, plan.bodies(pool.netloc), pool, plan.options,
        concurrency=concurrency, on_ended=on_ended, on_beat=on_beat,
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what is here already is not looked through again while times are taken
    try:
        complete = await sender.run(stop)
    finally:
        gc.unfreeze()
    return rows, complete, sender.beat_lags_s, sender.seconds


def _header(plan: _Plan, state: caches.CacheState, warm_up_failures: int) -> ReplayHeader:
    endpoint, vocabulary = plan.endpoint, plan.vocabulary
    ids = vocabulary.ids
    return ReplayHeader(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        endpoint=EndpointFacts(
            url=endpoint.url,
            model=endpoint.model,
            engine=endpoint.engine,
            api=endpoint.api,
            max_context_tokens=endpoint.max_context_tokens,
        ),
        load=plan.load,
        options=plan.options,
        workload=plan.workload.name,
        workload_digest=plan.workload.digest,
        requests=plan.requests,
        cache=state,
        prompt_form=plan.form,
        vocabulary=f"{len(ids):,} ids from {ids[0]} to {ids[-1]} ({vocabulary.source})",
        chat_template_tokens=plan.reserved,
        forced=endpoint.engine in FORCING,
        warm_up_failures=warm_up_failures,
    )


def environment() -> ClientEnvironment:
    names = ("numpy", "orjson", "pydantic", "uvloop") if sys.platform != "win32" else ("numpy", "orjson", "pydantic")
    return ClientEnvironment(
        fwopt=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count() or 1,
        packages={name: version(name) for name in names},
    )


def replay_sync(
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    options: ReplayOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Replay:
    """`replay` from ordinary code: SIGINT and SIGTERM end it early, with a result that says so."""

    async def main() -> Replay:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals off the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
        return await replay(endpoint, workload, load, options, stop=stop, progress=progress)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Any = uvloop.new_event_loop
    return factory  # type: ignore[no-any-return]
