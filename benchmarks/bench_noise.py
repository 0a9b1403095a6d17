"""How often `fwopt bench` rejects falsely on drawn noise, whose truth is known. Figures of benchmarks/bench.md.

python benchmarks/bench_noise.py
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from bench import RULES, SERIES, upper

from fwopt.regress.judge import MinEffect, Trial
from fwopt.regress.sequential import LOST_SHARE, levels, looks
from fwopt.spec.bench import Metric


@dataclass(frozen=True)
class Drawn:
    """Noise of two runs of an arm in a block, in log units."""

    statistic: str
    samples: int
    between_runs: float
    between_samples: float
    tails: float = 1000.0
    """Of runs: degrees of freedom of Student's t."""
    apart: float = 0.0
    """Half of the runs are slower by so much."""
    correlation: float = 0.0
    """Of a sample with the one before it."""

    def block(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        steps = rng.normal(size=(2, 2, self.samples))
        for i in range(1, self.samples):
            steps[..., i] = self.correlation * steps[..., i - 1] + (1 - self.correlation**2) ** 0.5 * steps[..., i]
        runs = self.between_runs * rng.standard_t(self.tails, (2, 2, 1)) + self.apart * rng.integers(2, size=(2, 2, 1))
        base, head = np.exp(runs + self.between_samples * steps).reshape(2, -1)
        return base, head


NOISES = {
    "lognormal runs, 3 samples each, p50": Drawn("p50", 3, 0.01, 0.02),
    "heavy-tailed runs, 5 samples each, p50": Drawn("p50", 5, 0.012, 0.005, tails=3),
    "runs at two speeds 30 % apart, p50": Drawn("p50", 3, 0.0, 0.01, apart=0.26),
    "lognormal runs, 5 samples each, p95": Drawn("p95", 5, 0.01, 0.02),
    "correlated requests, 25 a run, p90": Drawn("p90", 25, 0.05, 0.3, correlation=0.8),
}


def rejected(trials: int = 1000) -> None:
    """One-sided tests both ways, at every look and at the levels of a pass and of a fail of one metric; an arm that is
    worse by the minimum effect passes as often as the first."""
    rules = RULES.model_copy(update={"max_blocks": 68, "resamples": 200})
    at = looks(rules)
    passes, fails = (np.asarray(levels(rules, a)) for a in (rules.alpha_pass, rules.alpha * (1 - LOST_SHARE)))
    for name, drawn in NOISES.items():
        rng, began_s, p = np.random.default_rng(21), time.monotonic(), np.ones((2, trials, len(at)))
        metric = Metric(series=SERIES, statistic=drawn.statistic)
        for i in range(trials):
            trial = Trial(metric, MinEffect(0.0, "stated"), [drawn.block(rng) for _ in range(at[-1])])
            for k, n in enumerate(at):
                seen = trial.at(n, rules)
                p[:, i, k] = (1.0, 1.0) if seen is None else (seen.p_better(), seen.p_worse())
        counts = [int((p <= level).any(axis=2).sum()) for level in (passes, fails)]
        shares = (f"{n / trials / 2:.2%} (at most {upper(n, 2 * trials):.2%})" for n in counts)
        print(f"| {name} | {2 * trials} | {' | '.join(shares)} | {time.monotonic() - began_s:.0f} s |", flush=True)


if __name__ == "__main__":
    print(
        "| noise, statistic | tests | at the levels of a pass | at the levels of a fail | took |\n|---|--:|--:|--:|--:|"
    )
    rejected()
