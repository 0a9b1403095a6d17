"""`replay`: send a workload to a server as a load says, and write down what came back."""

from __future__ import annotations

import asyncio
import gc
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from fwopt.live import cache
from fwopt.live.endpoint import Endpoint
from fwopt.live.files import ReplayWriter, wanted_line
from fwopt.live.load import ClosedLoop, Load, schedule
from fwopt.live.options import ReplayOptions
from fwopt.live.order import Order
from fwopt.live.plan import Plan, header_of, prepare
from fwopt.live.problems import Lag
from fwopt.live.result import Replay, ReplayEnd
from fwopt.live.rows import Rows
from fwopt.live.sender import Sender
from fwopt.live.signals import until_signal
from fwopt.metrics.records import FINISHED, REJECTED_CONTEXT
from fwopt.workload.columns import Workload

Progress = Callable[[int, int], None]
"""(requests whose fate is known, requests in all); called some fifty times a second."""


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
    plan = await prepare(endpoint, workload, load, options, stop)
    failures = 0
    if options.cache == "warm":
        rows, _, _, _ = await _send(plan, stop, progress, None)
        failures = int((~np.isin(rows.status, (FINISHED, REJECTED_CONTEXT))).sum())
    state = await cache.prepare(endpoint, options, plan.salt)
    header = header_of(plan, state, failures)
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


async def _send(
    plan: Plan, stop: asyncio.Event, progress: Progress | None, writer: ReplayWriter | None
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
    _allow_many_sockets()
    gc.collect()
    gc.freeze()  # what is here already is not looked through again while times are taken
    try:
        complete = await sender.run(stop)
    finally:
        gc.unfreeze()
    return rows, complete, sender.beat_lags_s, sender.seconds


def _allow_many_sockets() -> None:
    """Each request in flight needs a socket, and 1,024 is a usual soft limit: go to what the system allows."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems say "unlimited" and refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def replay_sync(
    endpoint: Endpoint,
    workload: Workload,
    load: Load,
    options: ReplayOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Replay:
    """`replay` from ordinary code: SIGINT and SIGTERM end it early, with a result that says so."""

    return until_signal(
        lambda stop: replay(endpoint, workload, load, options, stop=stop, progress=progress), _loop_factory()
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Any = uvloop.new_event_loop
    return factory  # type: ignore[no-any-return]
