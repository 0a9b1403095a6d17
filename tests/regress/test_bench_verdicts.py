"""What a team relies on: slower is found, equal passes, and what cannot be told is called so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.regress.compare import compare
from fwopt.regress.estimate import effect
from fwopt.regress.sequential import holm, looks, planned
from fwopt.spec.bench import Metric, Rules

from .conftest import P50, Make, bench, result, run

STATED = Rules(min_effect=0.03)
P99 = Metric(series="wall", statistic="p99")


def only(found):
    assert len(found.metrics) == 1
    return found.metrics[0]


def test_equal_arms_pass_and_a_slowdown_fails(interleaved: Make) -> None:
    assert compare(*interleaved(), STATED).verdict == "pass"
    found = compare(*interleaved(slower=0.08), STATED)
    assert found.verdict == "fail"
    assert only(found).effect == pytest.approx(0.08, abs=0.02)
    assert only(found).low < 0.08 < only(found).high


def test_a_significant_change_below_the_minimum_effect_is_no_failure(interleaved: Make) -> None:
    found = compare(*interleaved(slower=0.01, noise=0.002), STATED)
    assert found.verdict == "pass"
    assert only(found).effect == pytest.approx(0.01, abs=0.005)


def test_noise_that_hides_the_minimum_effect_is_inconclusive_not_a_pass(interleaved: Make) -> None:
    found = compare(*interleaved(noise=0.5, samples=1, blocks=20), STATED)
    assert found.verdict == "inconclusive"


def test_an_improvement_passes_and_is_said(interleaved: Make) -> None:
    found = compare(*interleaved(slower=-0.1), STATED)
    assert found.verdict == "pass"
    assert only(found).improved


def test_more_is_better_where_the_metric_says_so(interleaved: Make) -> None:
    more = Metric(series="wall", statistic="mean", better="higher", unit="tokens/s")
    assert compare(*interleaved(slower=0.1, metrics=[more]), STATED).verdict == "pass"
    found = compare(*interleaved(slower=-0.1, metrics=[more]), STATED)
    assert found.verdict == "fail"
    assert only(found).effect == pytest.approx(1 / 0.9 - 1, abs=0.03)


def test_the_minimum_effect_comes_from_a_a_runs_within_floor_and_ceiling(interleaved: Make) -> None:
    rules = Rules()
    quiet, loud = (
        only(compare(*interleaved(noise=n, aa_blocks=10, blocks=10, rules=rules), rules)) for n in (0.001, 0.5)
    )
    assert quiet.min_effect_from == loud.min_effect_from == "A/A"
    assert quiet.min_effect == pytest.approx(rules.floor)
    assert loud.min_effect == pytest.approx(rules.ceiling)


def test_without_a_a_runs_and_without_a_stated_effect_nothing_is_concluded(interleaved: Make) -> None:
    found = compare(*interleaved(slower=0.5), Rules())
    assert found.verdict == "inconclusive"
    assert "no stated minimum effect" in only(found).reason


def test_a_slow_tail_is_found_where_it_is(interleaved: Make) -> None:
    """Every sixtieth request of head takes ten times as long: the p99 fails, the median passes."""
    base, head = interleaved(samples=120, blocks=16, metrics=[P50, P99])
    factors = np.where(np.arange(120) % 60 == 0, 10.0, 1.0)
    slow = [
        r.model_copy(update={"samples": {"wall": tuple((factors * r.samples["wall"]).tolist())}})
        for r in head.benches[0].runs
    ]
    found = compare(base, result([bench(slow, metrics=[P50, P99])]), STATED)
    assert {m.metric: m.verdict for m in found.metrics} == {"wall:p50": "pass", "wall:p99": "fail"}


def test_correlated_requests_are_no_evidence_of_their_own(interleaved: Make) -> None:
    """Runs lie far apart, requests of one run close together: 1,000 requests a run prove no more than the runs do."""

    def one_level_a_run(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.001, n))

    verdicts = [
        compare(*interleaved(draw=one_level_a_run, samples=60, blocks=6, seed=s), STATED).verdict for s in range(20)
    ]
    assert "fail" not in verdicts


DRIFTS = {
    "steady": lambda position: 1 + 0.01 * position,
    "a jump": lambda position: 1.5 if position > 31 else 1.0,
    "swinging": lambda position: 1 + 0.3 * np.sin(position / 9),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_moves_neither_arm_when_they_are_interleaved(name: str, interleaved: Make) -> None:
    assert compare(*interleaved(level=DRIFTS[name]), STATED).verdict == "pass"
    assert compare(*interleaved(level=DRIFTS[name], slower=0.08), STATED).verdict == "fail"


def test_arms_one_after_the_other_prove_nothing(interleaved: Make) -> None:
    """Whatever the block numbers say: positions tell when runs were made."""
    rng = np.random.default_rng(0)
    for slower in (0.0, 0.3):
        base = [run(i // 2, i, np.exp(rng.normal(0, 0.01, 5)).tolist()) for i in range(40)]
        head = [run(i // 2, 40 + i, ((1 + slower) * np.exp(rng.normal(0, 0.01, 5))).tolist()) for i in range(40)]
        found = compare(result([bench(base)], "base"), result([bench(head)]), STATED)
        assert found.verdict == "inconclusive"
        assert "one after the other" in only(found).reason


def test_an_arm_that_always_comes_first_proves_nothing() -> None:
    base = [run(i, 2 * i, [1.0 + 0.001 * i]) for i in range(30)]
    head = [run(i, 2 * i + 1, [1.1 + 0.001 * i]) for i in range(30)]
    found = compare(result([bench(base)], "base"), result([bench(head)]), STATED)
    assert found.verdict == "inconclusive"
    assert "base ran first" in only(found).reason


def test_no_samples_is_a_failure(interleaved: Make) -> None:
    base, head = interleaved()
    broken = [r.model_copy(update={"samples": {}, "problem": "exit status 1: boom"}) for r in head.benches[0].runs]
    found = compare(base, result([bench(broken)]), STATED)
    assert found.verdict == "fail"
    assert "boom" in only(found).reason
    assert compare(base, result([bench([])]), STATED).verdict == "fail"
    assert compare(base, result([]), STATED).verdict == "fail"


def test_blocks_with_a_failed_run_are_left_out(interleaved: Make) -> None:
    base, head = interleaved(blocks=20)
    runs = list(head.benches[0].runs)
    runs[0] = runs[0].model_copy(update={"problem": "timed out", "samples": {"wall": (1e9,)}})
    runs[1] = runs[1].model_copy(update={"problem": "timed out", "samples": {"wall": (1e9,)}})
    found = compare(base, result([bench(runs)]), STATED)
    assert {m.metric: m.verdict for m in found.metrics} == {"wall:p50": "pass", "lost": "inconclusive"}
    assert found.metrics[0].head < 2


def test_lost_requests_are_a_metric_of_their_own(interleaved: Make) -> None:
    base, head = interleaved()
    losing = [r.model_copy(update={"lost": 3}) for r in head.benches[0].runs]
    found = compare(base, result([bench(losing)]), STATED)
    assert found.verdict == "fail"
    assert {m.metric: m.verdict for m in found.metrics}["lost"] == "fail"


def test_a_build_that_crashes_now_and_then_does_not_pass_on_its_good_runs(interleaved: Make) -> None:
    base, head = interleaved()
    flaky = [
        r.model_copy(update={"problem": "exit status 139", "samples": {}} if i % 3 == 0 else {})
        for i, r in enumerate(head.benches[0].runs)
    ]
    found = compare(base, result([bench(flaky)]), STATED)
    assert found.verdict == "fail"
    assert {m.metric: m.verdict for m in found.metrics} == {"wall:p50": "pass", "lost": "fail"}


def test_the_same_files_give_the_same_comparison(interleaved: Make) -> None:
    arms = interleaved(noise=0.1, slower=0.04)
    assert compare(*arms, STATED) == compare(*arms, STATED)


def test_an_exact_figure_needs_no_repetition() -> None:
    metric = Metric(series="ttft", statistic="p99")

    def arm(value: float, session: str) -> object:
        return result([bench([run(0, 0, [value], metric.name)], metrics=[metric], exact=True)], session=session)

    assert compare(arm(1.0, "a"), arm(1.0, "b"), Rules()).verdict == "pass"
    assert compare(arm(1.0, "a"), arm(1.002, "b"), Rules()).verdict == "fail"


def test_looks_are_planned_before_the_first_sample() -> None:
    assert looks(Rules()) == (6, 10, 16, 26, 42, 68, 100)
    assert planned(Rules(), 5) == ()
    assert planned(Rules(), 16) == (6, 10, 16)
    assert planned(Rules(), 17) == (6, 10, 16, 17)
    assert planned(Rules(), 1000) == looks(Rules())


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_definition_rejects(p: dict[int, float], alpha: float) -> None:
    adjusted = holm(p)
    ranked = sorted(p, key=lambda k: p[k])
    rejected = set()
    for rank, key in enumerate(ranked):
        if p[key] * (len(p) - rank) > alpha:
            break
        rejected.add(key)
    assert {k for k, value in adjusted.items() if value <= alpha} == rejected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(0.1, 10), min_size=8, max_size=8))
def test_the_speed_of_a_block_is_nobodys_doing(seed: int, speeds: list[float]) -> None:
    rng = np.random.default_rng(seed)
    blocks = [(np.exp(rng.normal(0, 0.1, 6)), np.exp(rng.normal(0.05, 0.1, 6))) for _ in range(8)]
    scaled = [(b * s, h * s) for (b, h), s in zip(blocks, speeds, strict=True)]
    plain, other = (effect(x, P50, resamples=200, seed=1) for x in (blocks, scaled))
    assert other.log == pytest.approx(plain.log, abs=1e-9)
    assert other.error == pytest.approx(plain.error, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_exchanging_the_arms_turns_the_effect_round(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [(np.exp(rng.normal(0, 0.1, 4)), np.exp(rng.normal(0.05, 0.1, 4))) for _ in range(8)]
    there, back = (effect(x, P50, resamples=200, seed=1) for x in (blocks, [(h, b) for b, h in blocks]))
    assert there.log == pytest.approx(-back.log, abs=1e-9)
    assert there.error == pytest.approx(back.error, rel=1e-6)


def test_several_metrics_share_one_chance_of_a_false_alarm(interleaved: Make) -> None:
    """Eight equal metrics each: at an uncorrected 5 % most suites would fail."""
    rules = Rules(min_effect=0.001, alpha=0.05, max_blocks=20)
    fails = 0
    for seed in range(8):
        pairs = [interleaved(blocks=20, seed=100 * seed + i) for i in range(8)]
        base, head = (
            result([p[arm].benches[0].model_copy(update={"name": f"b{i}"}) for i, p in enumerate(pairs)])
            for arm in (0, 1)
        )
        fails += compare(base, head, rules).verdict == "fail"
    assert fails <= 2


@pytest.mark.parametrize("shift", [-0.03, 0.0, 0.03])
def test_a_change_is_estimated_without_bias(shift: float) -> None:
    """Runs that differ by 1 % each and samples by 2 %: the mean of 60 estimates is within 4 standard errors."""
    rng = np.random.default_rng(11)

    def arm(by: float) -> np.ndarray:
        return np.concatenate([np.exp(by + rng.normal(0, 0.01) + rng.normal(0, 0.02, 3)) for _ in range(2)])

    found = [
        effect([(arm(0.0), arm(shift)) for _ in range(42)], P50, resamples=200, seed=i).log - shift for i in range(60)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found, ddof=1) / math.sqrt(len(found))
