"""When a search ends before it is done: the user's Ctrl-C, or the time limit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from fwopt.search.ladder import StopReason

EXPLORE_SHARE = 0.75
"""Of a time limit: the rest is for the finalists' capacity."""


@dataclass(slots=True)
class Stopper:
    """Asked before each evaluation. The first Ctrl-C ends the search with what there is, a second one at once."""

    timeout_s: float | None = None
    closing: bool = False
    """The capacity phase has begun and may use the whole limit."""
    interrupted: bool = False
    started: float = field(default_factory=time.monotonic)

    def __call__(self) -> StopReason | None:
        if self.interrupted:
            return "interrupted"
        left = self.left_s()
        return "timeout" if left is not None and left <= 0 else None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def left_s(self) -> float | None:
        if self.timeout_s is None:
            return None
        return self.timeout_s * (1.0 if self.closing else EXPLORE_SHARE) - self.elapsed_s

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Take over SIGINT for the duration (main thread only)."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                signal.default_int_handler(number, frame)
            self.interrupted = True

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
