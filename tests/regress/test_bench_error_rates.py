"""How often verdicts err, on drawn noise whose truth is known: seeds are fixed, margins cover four standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import special

from fwopt.regress.estimate import effect
from fwopt.regress.judge import MinEffect, Trial, judge
from fwopt.regress.sequential import levels, looks
from fwopt.spec.bench import Metric, Rules

from .conftest import P50

Blocks = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Noise:
    """Of two runs of an arm in a block, in log units."""

    samples: int
    between_runs: float
    between_samples: float
    correlation: float = 0.0
    """Of a sample with the one before it."""

    def arm(self, rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
        steps = rng.normal(0, 1, (2, self.samples))
        for i in range(1, self.samples):
            steps[:, i] = self.correlation * steps[:, i - 1] + (1 - self.correlation**2) ** 0.5 * steps[:, i]
        runs = rng.normal(0, self.between_runs, (2, 1))
        return np.exp(shift + runs + self.between_samples * steps).ravel()

    def blocks(self, rng: np.random.Generator, count: int, shift: float = 0.0) -> Blocks:
        return [(self.arm(rng), self.arm(rng, shift)) for _ in range(count)]


NOISES = {
    "runs that lie apart": Noise(3, 0.01, 0.02),
    "requests that know nothing of each other": Noise(12, 0.0, 0.3),
    "requests that depend on each other": Noise(12, 0.05, 0.3, correlation=0.8),
}


@pytest.mark.parametrize("name", NOISES)
def test_the_error_of_a_change_is_how_far_estimates_lie_apart(name: str) -> None:
    rng = np.random.default_rng(3)
    found = [effect(NOISES[name].blocks(rng, 10), P50, resamples=200, seed=1) for _ in range(200)]
    spread = np.std([e.log for e in found])
    assert np.sqrt(np.mean([e.error**2 for e in found])) == pytest.approx(spread, rel=0.18)
    beyond = np.mean([e.p_worse() <= 0.05 or e.p_better() <= 0.05 for e in found])
    assert 0.03 <= beyond <= 0.18


@pytest.mark.parametrize("blocks", [6, 30])
def test_errors_are_known_as_well_as_their_degrees_of_freedom_say(blocks: int) -> None:
    """The logarithm of a squared error of so many degrees has the variance of a chi-squared one's: trigamma of half."""
    rng = np.random.default_rng(9)
    found = [effect(NOISES["runs that lie apart"].blocks(rng, blocks), P50, resamples=200, seed=1) for _ in range(200)]
    apart = np.var([2 * np.log(e.error) for e in found])
    assert 0.6 <= apart / special.polygamma(1, found[0].freedom / 2) <= 1.25


def test_looks_spend_the_error_that_is_stated_and_no_more() -> None:
    """Sequences of normal blocks: Student's t at each look. Four standard errors of 40,000 are 9 % of 5 %."""
    rng = np.random.default_rng(5)
    at = np.asarray(looks(Rules()))
    blocks = rng.normal(size=(40_000, at[-1]))
    mean, squares = (np.cumsum(b, axis=1)[:, at - 1] / at for b in (blocks, blocks**2))
    p = special.stdtr(at - 1, -mean / np.sqrt((squares - mean**2) / (at - 1)))
    for metrics in (1, 5):
        rejected = (p <= np.asarray(levels(Rules(), 0.05 * metrics, metrics)) / metrics).any(axis=1)
        assert rejected.mean() == pytest.approx(0.05, rel=0.09)


def test_levels_lie_between_equal_shares_and_the_whole_error() -> None:
    for rules in (Rules(), Rules(min_blocks=5, max_blocks=10_000), Rules(min_blocks=99, max_blocks=100)):
        found, share = levels(rules, 0.05), 0.05 / len(looks(rules))
        assert found[0] == pytest.approx(share)
        assert all(share < level < 0.05 for level in found[1:])
        assert list(found) == sorted(found)
        assert all(a <= b for a, b in zip(levels(rules, 0.05, 12), found, strict=True))
    assert levels(Rules(min_blocks=10, max_blocks=10), 0.05) == pytest.approx((0.05,))


def test_verdicts_err_as_rarely_as_they_claim() -> None:
    """A metric worse by the minimum effect passes in 5 % at most, equal arms fail in 0.5 % at most and mostly pass."""
    rules, least = Rules(max_blocks=16, resamples=200), 0.02
    noise, rng = NOISES["runs that lie apart"], np.random.default_rng(7)

    def verdicts(shift: float, count: int) -> list[str]:
        trials = [Trial(P50, MinEffect(least, "stated"), noise.blocks(rng, 16, shift)) for _ in range(count)]
        return [judge({("b", "wall:p50"): trial}, rules)["b", "wall:p50"].verdict for trial in trials]

    equal, worse, far = verdicts(0.0, 200), verdicts(least, 200), verdicts(4 * least, 50)
    assert worse.count("pass") <= 22
    assert equal.count("fail") <= 5
    assert equal.count("pass") >= 180
    assert far.count("fail") == 50


@pytest.mark.parametrize(("samples", "blocks"), [(5, 16), (15, 10)])
def test_a_tail_is_judged_once_enough_was_seen_of_it(samples: int, blocks: int) -> None:
    """The p99 of 160 samples is their largest: equal arms failed in 3 % and passed a tenth of their error in 13 %."""
    p99, rules, rng = Metric(series="wall", statistic="p99"), Rules(max_blocks=blocks), np.random.default_rng(7)
    for _ in range(100):
        trial = Trial(p99, MinEffect(0.001, "stated"), Noise(samples, 0.0, 0.02).blocks(rng, blocks))
        found = judge({("b", "wall:p99"): trial}, rules)["b", "wall:p99"]
        assert found.verdict == "inconclusive"
    assert f"{2 * samples * blocks} samples of an arm in {blocks} blocks; p99 takes 500" in found.reason


def test_a_tail_that_was_seen_errs_as_rarely_as_it_claims() -> None:
    """p95 of arms that are worse by the minimum effect: 5 % may pass, and equal ones fail in 0.5 %."""
    p95, rules, rng = (
        Metric(series="wall", statistic="p95"),
        Rules(max_blocks=26, resamples=200),
        np.random.default_rng(7),
    )

    def verdicts(shift: float, least: float) -> list[str]:
        trials = [
            Trial(p95, MinEffect(least, "stated"), NOISES["runs that lie apart"].blocks(rng, 26, shift))
            for _ in range(200)
        ]
        return [judge({("b", "wall:p95"): trial}, rules)["b", "wall:p95"].verdict for trial in trials]

    assert verdicts(0.01, 0.01).count("pass") <= 22
    assert verdicts(0.0, 0.001).count("fail") <= 5
