"""Work in child processes that may crash or hang: each such question is answered with one line, the rest goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from fwopt_kernels.elsewhere import Elsewhere, Process

Q = TypeVar("Q")
A = TypeVar("A")

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Fault:
    """Why a question has no answer, in one line."""

    reason: str


class Spent(Exception):  # noqa: N818 - not an error of this program
    """Raised by a function that ran in a child: what it says is the answer, and the child cannot be used any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Child(Generic[Q, A]):
    """One process that answers questions with `function`, started when first asked, and anew after it died."""

    function: Callable[[Q], A]
    """Importable by name; what it keeps between questions stays in the child."""
    prepare: Callable[[], None] | None = None
    """Called in the child before anything else."""
    timeout_s: float | None = None
    """Of one question. A child's first one may take `start_s` longer."""
    start_s: float = 60.0
    elsewhere: Elsewhere | None = None
    """Another Python to run it with."""
    _process: BaseProcess | Process | None = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)
    _deadline_s: float | None = field(default=None, init=False)

    def ask(self, question: Q) -> A | Fault:
        """The answer, waited for."""
        self.send(question)
        return self.receive()

    def send(self, question: Q) -> None:
        """Give the question to the child; `receive` has the answer."""
        extra = 0.0
        if self._process is None:
            extra = self.start_s
            self._pipe, theirs = _CONTEXT.Pipe()
            self._process = self._started(theirs)
            theirs.close()
        self._deadline_s = None if self.timeout_s is None else time.monotonic() + self.timeout_s + extra
        assert self._pipe is not None
        with contextlib.suppress(BrokenPipeError):  # the child died since its last answer: `receive` says how
            self._pipe.send(question)

    def _started(self, theirs: Connection) -> BaseProcess | Process:
        if self.elsewhere is None:
            process = _CONTEXT.Process(target=serve, args=(theirs, self.function, self.prepare), daemon=True)
            process.start()
            return process
        other = Process(self.elsewhere, theirs)
        assert self._pipe is not None
        self._pipe.send((self.function, self.prepare))
        return other

    def receive(self) -> A | Fault:
        """The answer to what was sent; a child that dies or is late is gone afterwards."""
        pipe = self._pipe
        assert pipe is not None
        if not pipe.poll(self.left_s):
            self.close()
            return Fault(f"no answer within {self.timeout_s:g} s")
        try:
            kind, answer = pipe.recv()
        except (EOFError, OSError):
            return Fault(self._last_words())
        if kind == "spent":
            self.close()
        if kind != "answer":
            return Fault(answer)
        given: A = answer
        return given

    @property
    def connection(self) -> Connection:
        """To wait on several children at a time."""
        assert self._pipe is not None
        return self._pipe

    @property
    def left_s(self) -> float | None:
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _last_words(self) -> str:
        process = self._process
        assert process is not None
        process.join(10)
        code = process.exitcode
        self.close()
        if code is not None and code < 0:
            return f"the process died of {signal.Signals(-code).name}"
        return f"the process ended with exit status {code}"


def ask_all(
    function: Callable[[Q], A],
    questions: Iterable[Q],
    *,
    workers: int,
    prepare: Callable[[], None] | None = None,
    timeout_s: float | None = None,
) -> Iterator[tuple[Q, A | Fault]]:
    """(question, answer) as they come, from `workers` children at a time."""
    waiting = iter(questions)
    children = [Child(function, prepare, timeout_s) for _ in range(workers)]
    busy: dict[int, tuple[Child[Q, A], Q]] = {}
    try:
        for at, child in enumerate(children):
            _next(busy, at, child, waiting)
        while busy:
            for at in _answered(busy):
                child, question = busy.pop(at)
                answer = child.receive()
                _next(busy, at, child, waiting)
                yield question, answer
    finally:
        for child in children:
            child.close()


def _next(busy: dict[int, tuple[Child[Q, A], Q]], at: int, child: Child[Q, A], waiting: Iterator[Q]) -> None:
    for question in waiting:
        child.send(question)
        busy[at] = (child, question)
        return


def _answered(busy: dict[int, tuple[Child[Q, A], Q]]) -> list[int]:
    """Those who answered, died or are late."""
    left = [child.left_s for child, _ in busy.values()]
    known = [seconds for seconds in left if seconds is not None]
    ready = wait([child.connection for child, _ in busy.values()], min(known) if known else None)
    return [at for at, (child, _) in busy.items() if child.connection in ready or child.left_s == 0.0]


def ask_once(
    function: Callable[[Q], A], question: Q, *, timeout_s: float, elsewhere: Elsewhere | None = None
) -> A | Fault:
    """Of a child that lives for this one question."""
    child: Child[Q, A] = Child(function, timeout_s=timeout_s, elsewhere=elsewhere)
    found = child.ask(question)
    child.close()
    return found


def one_line(error: BaseException) -> str:
    """The first cause: Triton wraps it once for each call that leads to it, and shows source lines before it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:300]


def serve(pipe: Connection, function: Callable[[Any], Any], prepare: Callable[[], None] | None) -> None:
    """The child's life. What compilers and drivers print has no reader: what counts comes through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if prepare is not None:
        prepare()
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("answer", function(question)))
        except Spent as spent:
            pipe.send(("spent", spent.reason))
        except Exception as error:
            pipe.send(("failed", one_line(error)))
