"""Work of an event loop that a signal ends early."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def until_signal(
    work: Callable[[asyncio.Event], Awaitable[T]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """From ordinary code: SIGINT and SIGTERM set the event, a second one is not held back. Afterwards they do what
    they did before."""

    async def main() -> T:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            stop.set()
            loop.remove_signal_handler(number)

        with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals off the main thread
            for number in _SIGNALS:
                loop.add_signal_handler(number, on_signal, number)
        return await work(stop)

    before = [(number, signal.getsignal(number)) for number in _SIGNALS]
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main())
    finally:
        with suppress(ValueError):
            for number, handler in before:
                if handler is not None:  # not one of Python's
                    signal.signal(number, handler)
