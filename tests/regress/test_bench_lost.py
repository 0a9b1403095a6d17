"""Requests without an answer: a metric of its own, under the same error as all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fwopt.regress.compare import compare
from fwopt.regress.lost import lost
from fwopt.regress.samplers.base import Visit
from fwopt.regress.session import Session
from fwopt.spec.bench import Arm, CommandBench, Rules, Suite
from fwopt.spec.bench_result import BenchResult, Key, Result
from fwopt.spec.comparison import Comparison, MetricVerdict

from .conftest import KEY, P50, bench, result, run

RULES = Rules(min_effect=0.03)


def arm(losses: Sequence[int], name: str = "b") -> BenchResult:
    return bench([run(i // 2, i, [1.0], lost=int(n)) for i, n in enumerate(losses)], name=name)


def of_lost(found: Comparison) -> list[MetricVerdict]:
    return [m for m in found.metrics if m.metric == "lost"]


def judged(base: Sequence[int], head: Sequence[int]) -> str:
    (found,) = of_lost(compare(result([arm(base)], "base"), result([arm(head)]), RULES))
    return found.verdict


def test_equal_arms_that_lose_requests_seldom_fail_in_any_bench() -> None:
    """Twelve benches that lose something in 30 % of 80 runs: each by itself at 0.5 %, 5 % of such suites failed."""
    rng, fails, one, plain = np.random.default_rng(0), 0, run(0, 0, [1.0], lost=1), run(0, 0, [1.0])
    frame = result([])

    def suite() -> dict[str, BenchResult]:
        drawn = rng.random((12, 80)) < 0.3
        names = [f"b{i}" for i in range(12)]
        runs = [tuple(one if yes else plain for yes in row) for row in drawn]
        return {n: BenchResult.model_construct(name=n, kind="command", exact=False, runs=r)
                for n, r in zip(names, runs, strict=True)}  # fmt: skip

    for _ in range(120):
        head = frame.model_copy(update={"benches": tuple(suite().values())})
        fails += any(m.verdict == "fail" for m in lost(suite(), head, RULES))
    assert fails <= 1


def test_losing_a_hundred_times_as_much_fails_where_every_run_loses_something() -> None:
    assert judged([1] * 40, [100] * 40) == "fail"
    assert judged([1, 2] * 20, [40, 60] * 20) == "fail"
    assert judged([100] * 40, [1] * 40) == "pass"


def test_one_run_that_lost_much_proves_nothing() -> None:
    assert judged([0] * 40, [0] * 39 + [500]) == "inconclusive"
    assert judged([1] * 40, [1] * 39 + [500]) == "inconclusive"


def test_a_build_that_loses_in_a_third_of_its_runs_fails_beside_benches_that_lose_alike() -> None:
    alike = [arm([0, 0, 1, 0] * 20, f"b{i}") for i in range(3)]
    flaky = arm([0, 0, 1] * 26 + [0, 0])
    found = of_lost(compare(result([*alike, arm([0] * 80)], "base"), result([*alike, flaky]), RULES))
    assert [m.verdict for m in found] == ["pass", "pass", "pass", "fail"]


class Fails:
    """A sampler whose head crashes in some of its runs."""

    exact, notes = False, ()

    def __init__(self, crashes: Callable[[int], bool], noise: float) -> None:
        self.crashes, self.noise, self.runs, self.rng = crashes, noise, 0, np.random.default_rng(0)

    def key(self, arm: str) -> Key:
        return KEY

    def visit(self, arm: str) -> Visit:
        self.runs += arm == "head"
        if arm == "head" and self.crashes(self.runs):
            return Visit({}, problem="exit status 139: it said nothing")
        return Visit({"wall": tuple(np.exp(self.rng.normal(0, self.noise, 3)).tolist())})


def session(sampler: Fails) -> tuple[Result, Result]:
    suite = Suite(
        name="nightly",
        benches=(CommandBench(name="b", command="-", metrics=(P50,)),),
        arms={"base": Arm(), "head": Arm()},
        rules=RULES.model_copy(update={"warm_up_runs": 0}),
    )
    found = Session(suite, {"b": sampler}, {}, probe=lambda: 1e-3).run()
    return found["base"], found["head"]


def test_a_bench_that_was_given_up_does_not_blame_the_budget() -> None:
    base, head = session(Fails(lambda run: run > 16, noise=0.3))
    assert len(head.benches[0].runs) < 25
    wall = compare(base, head, RULES).metrics[0]
    assert wall.reason == "neither shown in 8 blocks; measuring ended before look 3 of 7"


def test_looks_come_at_planned_numbers_of_blocks_that_count() -> None:
    """Two crashes, a block each: more looks than planned, after 8 blocks, 14 and so on, would spend more than 5 %."""
    base, head = session(Fails(lambda run: run in (1, 2, 5, 6), noise=0.001))
    assert {run.block for run in head.benches[0].runs} == set(range(8))
    wall = compare(base, head, RULES).metrics[0]
    assert (wall.verdict, wall.blocks, wall.look) == ("pass", 6, 1)
