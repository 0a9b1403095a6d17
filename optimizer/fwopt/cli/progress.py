"""Progress on stderr: one living line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fwopt.search.progress import Progress
    from fwopt.search.stopping import Stopper
    from fwopt.search.tuner import Phase
    from fwopt.spec.outcome import Trial

PLAIN_EVERY_S = 5.0
WARM = 8
"""Simulations before the pace says anything: the first ones may be compiling."""


class Display:
    """Hears of phases and trials; shows the best so far, what was rejected and why, and the time left."""

    def __init__(self, progress: Progress, stopper: Stopper) -> None:
        self.progress, self.stopper = progress, stopper
        self._last_s = 0.0
        self.measuring = ""

    def on_phase(self, phase: Phase) -> None:
        self.progress.phase = phase
        self._plain(force=True)

    def on_measure(self, what: str, done: int, total: int) -> None:
        """Of `fwopt quality`, while it works for the search."""
        self.measuring = f"{what}, {done} of {total}" if total else what
        self._plain(force=False)

    def on_trial(self, trial: Trial) -> None:
        self.progress.observe(trial)
        self._plain(force=False)

    def _plain(self, *, force: bool) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() or (not force and now - self._last_s < PLAIN_EVERY_S):
            return
        self._last_s = now
        p = self.progress
        line = f"{p.phase}: {p.evaluated} simulated, {self.left()}; best: {p.best_text}; rejected: {p.rejected_text}"
        print(f"fwopt: {line}", file=sys.stderr, flush=True)

    def left(self) -> str:
        """Until the budget is spent at the pace so far, or until the time limit, whichever comes first."""
        p, spent = self.progress, self.stopper.elapsed_s
        if p.phase == "quality":
            return self.measuring or "measuring"
        if p.phase == "capacity":
            return f"{p.capacity_runs} capacity runs"
        pace = spent / p.evaluated * max(p.budget - p.evaluated, 0) if p.evaluated >= WARM else None
        limit = self.stopper.left_s()
        times = [t for t in (pace, limit) if t is not None]
        return f"at most {max(min(times), 0):.0f} s left" if times else "time left unknown"

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        p = self.progress
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]" + p.phase, f"{p.evaluated} simulated of at most {p.budget}, {self.left()}")
        table.add_row("best", p.best_text)
        table.add_row("rejected", p.rejected_text)
        return table

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(self, console=Console(stderr=True), refresh_per_second=5, transient=True):
            yield
