"""One session: arms visited block by block until every metric is decided or the budget is spent."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fwopt import __version__
from fwopt.regress.judge import Name, Trial, judge
from fwopt.regress.machine import fingerprint, probe_s
from fwopt.regress.order import block_order, pair
from fwopt.regress.samplers.base import Sampler
from fwopt.regress.sequential import looks
from fwopt.regress.suite import metrics_of, what_digest
from fwopt.regress.trials import trials_of
from fwopt.spec.bench import ArmName, Bench, Suite
from fwopt.spec.bench_result import BenchResult, Probe, Result, Run

MOST_PROBLEMS = 3
"""Visits to one arm in a row that fail: the bench is given up."""
Tell = Callable[[str, int, int], None]


@dataclass(slots=True)
class _Course:
    """One bench on its way."""

    bench: Bench
    sampler: Sampler
    runs: dict[ArmName, list[Run]]
    aa_runs: list[Run] = field(default_factory=list)
    problems: dict[ArmName, int] = field(default_factory=dict)
    """Visits in a row that failed."""
    done: bool = False


@dataclass(slots=True)
class Session:
    """Measures a suite once."""

    suite: Suite
    samplers: Mapping[str, Sampler]
    commits: Mapping[ArmName, str | None]
    tell: Tell = lambda what, done, of: None
    clock: Callable[[], float] = time.monotonic
    probe: Callable[[], float] = probe_s
    interrupted: bool = False
    _begun_s: float = 0.0
    _position: int = 0
    _probes: list[Probe] = field(default_factory=list)
    _trials: dict[Name, Trial] = field(default_factory=dict)

    def run(self) -> dict[ArmName, Result]:
        """Ctrl-C ends it with what there is."""
        arms: tuple[ArmName, ...] = ("base", "head") if "base" in self.suite.arms else ("head",)
        courses = [_Course(b, self.samplers[b.name], {arm: [] for arm in arms}) for b in self.suite.benches]
        self._begun_s = self.clock()
        try:
            self._probe()
            self._measure(courses, arms)
        except KeyboardInterrupt:
            self.interrupted = True
        made_at, session = datetime.now(UTC).isoformat(timespec="seconds"), uuid.uuid4().hex[:16]
        machine = fingerprint()
        return {arm: self._result(arm, courses, made_at, session, machine) for arm in arms}

    def _measure(self, courses: list[_Course], arms: tuple[ArmName, ...]) -> None:
        rules, rng = self.suite.rules, random.Random(self.suite.seed)
        noisy = [c for c in courses if not c.sampler.exact]
        for course in courses:
            if course.sampler.exact:
                for arm in arms:
                    course.runs[arm].append(self._visit(course, arm, 0))
                course.done = True
        for at in range(rules.warm_up_runs):
            for course in noisy:
                for arm in arms:
                    self.tell(f"warming up {course.bench.name}", at, rules.warm_up_runs)
                    course.sampler.visit(arm)
        if len(arms) == 1:
            for at in range(rules.aa_blocks):
                for course in self._open(noisy):
                    self.tell(f"measuring {course.bench.name}", at, rules.aa_blocks)
                    course.runs["head"] += self._block(course, ("head",) * 4, at)
            return
        floor = [c for c in noisy if any(m.min_effect is None and rules.min_effect is None for m in
                                         metrics_of(c.bench))]  # fmt: skip
        for at in range(rules.aa_blocks):
            for course in self._open(floor):
                self.tell(f"noise of {course.bench.name}", at, rules.aa_blocks)
                course.aa_runs += self._block(course, ("base",) * 4, at)
        self._compare(noisy, rng)

    def _compare(self, courses: list[_Course], rng: random.Random) -> None:
        rules = self.suite.rules
        due = set(looks(rules))
        for at in range(rules.max_blocks):
            for course in self._open(courses):
                self.tell(f"comparing {course.bench.name}", at, rules.max_blocks)
                order = block_order(rng)
                for arm, run in zip(order, self._block(course, order, at), strict=True):
                    course.runs[arm].append(run)
            if any(len(pair(c.runs["base"], c.runs["head"]).blocks) in due for c in self._open(courses)):
                self._look(courses)
            if not self._open(courses):
                return

    def _open(self, courses: list[_Course]) -> list[_Course]:
        if self.clock() - self._begun_s >= self.suite.rules.budget_s:
            return []
        return [course for course in courses if not course.done]

    def _look(self, courses: list[_Course]) -> None:
        """Benches whose metrics are all decided need no more samples."""
        rules = self.suite.rules
        trials = {}
        for course in courses:
            base, head = (self._bench_result(course, arm, with_key=False) for arm in ("base", "head"))
            trials.update(trials_of(base, head, rules, self._trials)[0])
        self._trials = trials
        found = judge(trials, rules, ended=False)
        for course in courses:
            mine = [f for (bench, _), f in found.items() if bench == course.bench.name]
            course.done |= bool(mine) and all(f.verdict != "inconclusive" for f in mine)

    def _block(self, course: _Course, order: tuple[ArmName, ...], number: int) -> list[Run]:
        runs = [self._visit(course, arm, number) for arm in order]
        self._probe()
        return runs

    def _visit(self, course: _Course, arm: ArmName, block: int) -> Run:
        started_s = self.clock() - self._begun_s
        visit = course.sampler.visit(arm)
        course.problems[arm] = course.problems.get(arm, 0) + 1 if visit.problem else 0
        course.done |= course.problems[arm] >= MOST_PROBLEMS
        self._position += 1
        return Run(
            block=block, position=self._position - 1, started_s=round(started_s, 3), samples=visit.samples,
            lost=visit.lost, parts=visit.parts, problem=visit.problem,
        )  # fmt: skip

    def _probe(self) -> None:
        self._probes.append(Probe(at_s=round(self.clock() - self._begun_s, 3), seconds=float(f"{self.probe():.5g}")))

    def _bench_result(self, course: _Course, arm: ArmName, *, with_key: bool = True) -> BenchResult:
        from fwopt.spec.bench_result import Key

        unknown = Key(hardware="-", engine="-", model="-", workload="-", config="-")
        return BenchResult(
            name=course.bench.name,
            kind=course.bench.kind,
            key=course.sampler.key(arm) if with_key else unknown,
            metrics=metrics_of(course.bench),
            exact=course.sampler.exact,
            runs=tuple(course.runs[arm]),
            aa_runs=tuple(course.aa_runs) if arm == "base" else (),
            notes=course.sampler.notes,
        )

    def _result(
        self, arm: ArmName, courses: list[_Course], made_at: str, session: str, machine: dict[str, str]
    ) -> Result:
        return Result(
            fwopt_version=__version__,
            suite=self.suite.name,
            suite_digest=what_digest(self.suite),
            session=session,
            arm=arm,
            made_at=made_at,
            commit=self.commits.get(arm),
            machine=machine,
            probes=tuple(self._probes),
            benches=tuple(self._bench_result(course, arm) for course in courses),
            rules=self.suite.rules,
        )
