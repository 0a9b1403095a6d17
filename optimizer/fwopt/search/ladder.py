"""The rungs in order of price: screens (memory, bound, quality), dominance, then simulation in parallel.

Batches are judged and recorded in the order asked, whatever order the workers finish in: the same seed
writes the same bytes with any number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from fwopt.search.dominance import Dominance
from fwopt.search.evaluators import Evaluator, Screen
from fwopt.search.log import Key, TrialLog
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Evaluation, Rejected, Trial

Role = Literal["baseline", "search", "capacity", "nearest"]


StopReason = Literal["interrupted", "timeout"]


class Stopped(Exception):  # noqa: N818 - a signal between the ladder and the search, never shown
    """Nothing new may start; what was recorded stands."""

    def __init__(self, reason: StopReason) -> None:
        self.reason: StopReason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Ask:
    """One evaluation wanted."""

    candidate: Candidate
    role: Role = "search"
    rate_scale: float = 1.0

    @property
    def key(self) -> Key:
        return self.candidate.id, self.rate_scale, self.role == "nearest"


@dataclass(slots=True)
class Ladder:
    """Runs asks through the rungs. `on_trial` hears of every trial once, as it is recorded or recalled."""

    evaluator: Evaluator
    screens: Sequence[Screen]
    """The first decides whether the engine starts at all; baselines pass by the others."""
    dominance: Dominance
    log: TrialLog
    workers: int = 1
    stop: Callable[[], StopReason | None] = lambda: None
    """Asked before each evaluation; a reason means that nothing new is started."""
    on_trial: Callable[[Trial], None] = lambda trial: None
    grade: Callable[[Candidate, Evaluation | Rejected], Evaluation | Rejected] = lambda candidate, outcome: outcome
    """Adds to an outcome what the evaluator does not know."""
    seen: list[Trial] = field(default_factory=list, init=False)
    """Distinct trials that this search asked for, in that order, those recalled from the log included."""
    _seen_keys: set[Key] = field(default_factory=set, init=False)
    _told: set[Key] = field(default_factory=set, init=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)

    @property
    def simulations(self) -> int:
        return sum(1 for trial in self.seen if trial.outcome.kind == "evaluation")

    def run(self, asks: Sequence[Ask]) -> list[Trial]:
        """Outcomes in the order asked. Dominance learns from them only when all are in."""
        trials = list(self._recorded(asks))
        for ask, trial in zip(asks, trials, strict=True):
            if ask.rate_scale == 1.0:
                self.dominance.observe(trial.candidate, trial.outcome)
        return trials

    def _recorded(self, asks: Sequence[Ask]) -> Iterator[Trial]:
        """Keeps at most `workers` evaluations in flight beyond the next one to record."""
        waiting = deque(asks)
        flying: deque[tuple[Ask, Future[Evaluation | Rejected] | None]] = deque()
        started: set[Key] = set()
        stopped: Stopped | None = None
        while waiting or flying:
            while waiting and len(flying) < self.workers:
                ask = waiting.popleft()
                try:
                    flying.append((ask, self._start(ask, started)))
                except Stopped as signal:
                    stopped = signal
                    waiting.clear()
            if flying:
                yield self._record(*flying.popleft())
        if stopped is not None:
            raise stopped

    def _start(self, ask: Ask, started: set[Key]) -> Future[Evaluation | Rejected] | None:
        """None: already known, or being computed for an earlier ask of this batch."""
        key = ask.key
        if key in started or self.log.get(key) is not None:
            return None
        started.add(key)
        rejected = self._screen(ask)
        if rejected is not None:
            done: Future[Evaluation | Rejected] = Future()
            done.set_result(rejected)
            return done
        reason = self.stop()
        if reason is not None:
            raise Stopped(reason)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fwopt")
        return self._pool.submit(self.evaluator.evaluate, ask.candidate, ask.rate_scale)

    def _screen(self, ask: Ask) -> Rejected | None:
        """Capacity runs are of candidates that passed; the nearest miss is simulated past the bound; a baseline is
        always worth a number unless it cannot start."""
        if ask.role in ("capacity", "nearest"):
            return None
        for screen in self.screens[:1] if ask.role == "baseline" else self.screens:
            rejected = screen.check(ask.candidate)
            if rejected is not None:
                return rejected
        return None if ask.role == "baseline" else self.dominance.check(ask.candidate)

    def _record(self, ask: Ask, future: Future[Evaluation | Rejected] | None) -> Trial:
        if future is None:
            known = self.log.get(ask.key)
            assert known is not None
            trial = known
        else:
            outcome = self.grade(ask.candidate, future.result())
            number = len(self.log.trials)
            trial = Trial(
                number=number, candidate=ask.candidate, role=ask.role, rate_scale=ask.rate_scale, outcome=outcome
            )
            self.log.append(trial)
        if ask.key not in self._seen_keys:
            self._seen_keys.add(ask.key)
            self.seen.append(trial)
            if ask.key not in self._told:
                self._told.add(ask.key)
                self.on_trial(trial)
        return trial

    def restart(self) -> None:
        """For another walk of the search: nothing was asked for yet, the log recalls what is known."""
        self.seen.clear()
        self._seen_keys.clear()
        self.dominance = Dominance(self.dominance.objective)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
