"""How far work that is counted has come, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str, int, int], None]
"""Hears of (what is going on, how many are done, of how many; 0: unknown), as often as it likes."""


@contextmanager
def counting(*, every_s: float = 5.0) -> Iterator[Tell]:
    """Drawn twice a second at most: the client that is being shown keeps time. `every_s`: between plain lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plainly(every_s)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bars:
        task = bars.add_task("preparing", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total or None)


def _plainly(every_s: float) -> Tell:
    last_s, begun = float("-inf"), ""

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last_s, begun
        now = time.monotonic()
        if now - last_s >= every_s or (done == 0 and what != begun):
            last_s, begun = now, what
            count = f": {done:,} of {total:,}" if total else ""
            print(f"fwopt: {what}{count}", file=sys.stderr, flush=True)

    return tell
