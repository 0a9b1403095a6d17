"""How often verdicts err, on drawn noise whose truth is known: seeds are fixed, margins cover four standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fwopt.regress.estimate import effect

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
    "requests that know nothing of each other": Noise(25, 0.0, 0.3),
    "requests that depend on each other": Noise(25, 0.05, 0.3, correlation=0.8),
}


@pytest.mark.parametrize("name", NOISES)
def test_the_error_of_a_change_is_how_far_estimates_lie_apart(name: str) -> None:
    rng = np.random.default_rng(3)
    found = [effect(NOISES[name].blocks(rng, 10), P50, resamples=200, seed=1) for _ in range(200)]
    spread = np.std([e.log for e in found])
    assert np.sqrt(np.mean([e.error**2 for e in found])) == pytest.approx(spread, rel=0.18)
    beyond = np.mean([e.p_worse() <= 0.05 or e.p_better() <= 0.05 for e in found])
    assert 0.03 <= beyond <= 0.18
