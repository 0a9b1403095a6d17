"""The loop that sends each request when it is due, whatever the server does meanwhile."""

from __future__ import annotations

import asyncio
import errno
import math
from array import array
from collections.abc import Callable
from time import perf_counter
from typing import Any

from fwopt.errors import InputError
from fwopt.live.bodies import Bodies
from fwopt.live.exchange import Exchange
from fwopt.live.http import Pool
from fwopt.live.options import ReplayOptions
from fwopt.live.order import Order
from fwopt.live.rows import Rows
from fwopt.metrics.records import FINISHED, PARENT_FAILED, REJECTED_CONTEXT, UNREACHABLE

BEAT_S = 0.02
SWEEP_S = 0.25
"""Timeouts are looked for four times a second."""
AHEAD_BYTES = 64 << 20
"""Messages are built ahead of their time, up to so many bytes."""
_SLACK_S = 2e-3
"""A message is built ahead only while nothing is due for so long."""

_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)
"""Failures to connect that are not the server's."""
_NOTHING: array[int] = array("I")


class Sender:
    """Sends every request of an `Order` once; `on_ended(request, chunk_us, running)` hears of each when it is over."""

    def __init__(
        self,
        order: Order,
        rows: Rows,
        bodies: Bodies,
        pool: Pool,
        options: ReplayOptions,
        *,
        concurrency: int | None,
        on_ended: Callable[[int, array[int], array[int]], None],
        on_beat: Callable[[], None],
    ) -> None:
        self._order, self._rows, self._bodies, self._pool, self._options = order, rows, bodies, pool, options
        self._concurrency = concurrency if concurrency is not None else len(rows)
        self._on_ended, self._on_beat = on_ended, on_beat
        self._chat = bodies.endpoint.api == "chat"
        self._limit = bodies.endpoint.max_context_tokens
        self._in_flight: dict[int, Exchange] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._ahead: dict[int, bytes] = {}
        self._ahead_bytes, self._ahead_position = 0, 0
        self._timer: asyncio.Handle | None = None
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._zero = 0.0
        pool.on_bug = self._break
        self._beat_handle: asyncio.Handle | None = None
        self._next_beat, self._next_sweep = BEAT_S, SWEEP_S
        self.beat_lags_s: array[float] = array("f")
        """How late the event loop came to each beat: what its reading of the clock may be off by."""
        self.seconds = 0.0
        """From the start to the end of `run`."""

    def _now(self) -> float:
        return perf_counter() - self._zero

    async def run(self, stop: asyncio.Event) -> bool:
        """Until every request's fate is known, or `stop`; whether it was all of them."""
        built = 0
        while self._build_ahead() and not stop.is_set():
            built += 1
            if built % 100 == 0:
                await asyncio.sleep(0)  # signals come between two turns of the loop
        self._zero = perf_counter()
        self._beat_handle = self._loop.call_later(BEAT_S, self._beat)
        stopped = asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {self._done, stopped}
        self._pump()
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._done.done():
                self._done.result()
            return self._order.unresolved == 0
        finally:
            self.seconds = self._now()
            for handle in (self._timer, self._beat_handle):
                if handle is not None:
                    handle.cancel()
            stopped.cancel()
            self._cut()

    def _beat(self) -> None:
        now = self._now()
        self.beat_lags_s.append(max(now - self._next_beat, 0.0))
        self._next_beat = now + BEAT_S
        self._beat_handle = self._loop.call_later(BEAT_S, self._beat)
        try:
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP_S
                self._sweep()
            self._on_beat()
        except Exception as error:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """End the run with an error of the client's own: in a callback it would only be logged."""
        if not self._done.done():
            self._done.set_exception(error)

    def _sweep(self) -> None:
        now = perf_counter()
        for exchange in list(self._in_flight.values()):
            reason = exchange.overdue(self._options, now)
            if reason is not None:
                exchange.time_out(reason, now)

    def _soon(self) -> None:
        """Have `_pump` run in this turn of the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send what is due; then build ahead or sleep until the next is."""
        self._timer = None
        try:
            self._send_due()
            if self._order.unresolved == 0:
                if not self._done.done():
                    self._done.set_result(None)
                return
            full = len(self._in_flight) >= self._concurrency
            wait_s = math.inf if full else self._order.next_due_s() - self._now()
            if wait_s > _SLACK_S and self._build_ahead():
                self._soon()
            elif wait_s < math.inf:
                self._timer = self._loop.call_later(max(wait_s, 0.0), self._pump)
        except Exception as error:
            self._break(error)

    def _send_due(self) -> None:
        while len(self._in_flight) < self._concurrency:
            found = self._order.pop(self._now())
            if found is None:
                return
            self._start(*found)

    def _start(self, request: int, due_s: float) -> None:
        rows, message = self._rows, self._message(request)
        rows.scheduled_s[request] = due_s
        if message is None:
            self._settle(request, REJECTED_CONTEXT, f"longer than the server's {self._limit} tokens; not sent")
            return
        now = perf_counter()
        rows.started_s[request] = now - self._zero
        exchange = Exchange(request, rows, self._zero, now, self._chat, self._ended)
        self._in_flight[request] = exchange
        connection = self._pool.take()
        if connection is None:
            task = self._loop.create_task(self._open_and_send(exchange, message))
            self._opening.add(task)
            task.add_done_callback(self._opened)
            return
        rows.connected_s[request] = rows.started_s[request]
        exchange.connection = connection
        connection.send(message, exchange)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._break(error)

    async def _open_and_send(self, exchange: Exchange, message: bytes) -> None:
        try:
            connection = await self._pool.open()
        except TimeoutError:
            exchange.fail(UNREACHABLE, f"no connection within {self._pool.timeout_s:g} s", perf_counter())
            return
        except OSError as error:
            if error.errno in _OWN_LIMITS:
                flying = len(self._in_flight)
                raise InputError(
                    f"the client has no more sockets ({error.strerror}) with {flying:,} requests in flight: "
                    "raise `ulimit -n`, or lower the rate"
                ) from None
            exchange.fail(UNREACHABLE, f"cannot connect: {error.strerror or error}", perf_counter())
            return
        if exchange.over:
            connection.close()
            return
        self._rows.connected_s[exchange.index] = self._now()
        exchange.connection = connection
        connection.send(message, exchange)

    def _message(self, request: int) -> bytes | None:
        """The HTTP message; None when the server's context is known to be shorter."""
        workload = self._bodies.workload
        total = int(workload.prompt_tokens[request]) + int(workload.output_tokens[request])
        if self._limit is not None and total > self._limit:
            return None
        message = self._ahead.pop(request, None)
        if message is None:
            return self._bodies.message(request)
        self._ahead_bytes -= len(message)
        return message

    def _build_ahead(self) -> bool:
        """Build one more message; False when there is nothing to build, or no room."""
        if self._ahead_bytes >= AHEAD_BYTES:
            return False
        for position, request in self._order.upcoming(self._ahead_position):
            self._ahead_position = position + 1
            if request in self._ahead:
                continue
            message = self._message(request)
            if message is not None:
                self._ahead[request] = message
                self._ahead_bytes += len(message)
            return True
        return False

    def _ended(self, exchange: Exchange) -> None:
        request = exchange.index
        del self._in_flight[request]
        self._rows.count_gaps(request, exchange.chunk_us, exchange.running)
        self._on_ended(request, exchange.chunk_us, exchange.running)
        self._after(request, self._rows.status[request] == FINISHED)
        self._soon()

    def _settle(self, request: int, status: int, reason: str) -> None:
        """A request that is never sent."""
        self._rows.status[request], self._rows.errors[request] = status, reason
        self._on_ended(request, _NOTHING, _NOTHING)
        self._after(request, False)

    def _after(self, request: int, finished: bool) -> None:
        """What the end of one request means for those that continue it."""
        try:
            self._release(request, finished)
        except Exception as error:
            self._break(error)

    def _release(self, request: int, finished: bool) -> None:
        ready, lost = self._order.ended(request, finished, self._now())
        for child in lost:
            self._rows.status[child] = PARENT_FAILED
            self._rows.scheduled_s[child] = self._order.scheduled_s(child)
            self._rows.errors[child] = f"continues request {request}, which did not finish"
            self._on_ended(child, _NOTHING, _NOTHING)
        if self._ahead_bytes < AHEAD_BYTES:
            for child in ready:
                message = self._message(child)
                if message is not None:
                    self._ahead[child] = message
                    self._ahead_bytes += len(message)

    def _cut(self) -> None:
        """End what is in flight: its rows say unfinished."""
        for task in self._opening:
            task.cancel()
        for request, exchange in self._in_flight.items():
            exchange.over = True
            self._rows.cut(request)
            self._rows.token_events[request] = len(exchange.chunk_us)
            self._on_ended(request, exchange.chunk_us, exchange.running)
            if exchange.connection is not None:
                exchange.connection.close()
        self._in_flight.clear()
        self._pool.close()
