"""How much one arm differs from the other in one metric, and how well that is known.

Samples are pooled over all runs of an arm and the statistic (mean or quantile) is taken of the pool: a p99 is the p99
of all requests, never a mean of p99s. Before pooling, the samples of a block are divided by that block's own level, the
geometric mean of both arms' medians, so that a machine that changes speed between blocks moves neither arm. (The median
of both arms' samples together is no such level: it skews the arms against each other and hides a tenth of a change.)
Quantiles are Harrell and Davis's (1982): smooth in the samples, so that few of them have an error that can
be told.

The error comes from random halves of the blocks (Shao & Wu 1989: leaving out one block at a time is not enough for a
quantile), both arms of a block together: runs of a block share its circumstances, and requests of a run depend on each
other, so that neither is a unit of its own. Student's t makes up for few blocks.
(Drawing requests inside drawn blocks, as a bootstrap may, counts the noise of requests twice.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fwopt.spec.bench import Metric

Floats = NDArray[np.float64]
Statistic = float | Literal["mean"]
DENSITY = 0.3
"""A quantile's error also rests on how dense the samples are there, of which few blocks say little: relative variance
of the squared error beyond Student's, times the root of the blocks. Of 1,000 draws of heavy-tailed runs it was 0.25 to
0.32 after 6 to 68 blocks; of lognormal runs less, of runs in two speeds more."""
_CHUNK = 1_000_000
"""Weights held at a time."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Change for the worse, in log units: 0.05 is about five per cent."""

    log: float
    error: float
    """Standard error."""
    units: int
    """Blocks or sessions behind it."""
    freedom: float
    """Degrees of freedom of the error."""

    def p_worse(self, by: float = 0.0) -> float:
        """Chance that an arm worse by at most `by` looks this bad."""
        if self.error == 0:
            return 0.0 if self.log > by else 1.0
        return float(special.stdtr(self.freedom, (by - self.log) / self.error))

    def p_better(self, by: float = 0.0) -> float:
        """Chance that an arm worse by at least `by` looks this good."""
        if self.error == 0:
            return 0.0 if self.log < by else 1.0
        return float(special.stdtr(self.freedom, (self.log - by) / self.error))

    def interval(self, alpha: float) -> tuple[float, float]:
        """One-sided at `alpha` on either side."""
        half = float(special.stdtrit(self.freedom, 1 - alpha)) * self.error
        return self.log - half, self.log + half


def relative(log: float) -> float:
    return math.expm1(log)


@dataclass(frozen=True, slots=True)
class Pool:
    """All samples of one arm, ascending, and the block that each is of."""

    values: Floats
    block: NDArray[np.intp]

    @classmethod
    def of(cls, parts: Sequence[Floats]) -> Pool:
        values = np.concatenate(parts)
        block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(values, kind="stable")
        return cls(values[order], block[order])

    def statistic(self, which: Statistic, kept: NDArray[np.bool_]) -> Floats:
        """For each row, of the samples of the blocks that it keeps."""
        rows = max(1, _CHUNK // len(self.values))
        parts = [self._of(which, kept[at : at + rows, self.block]) for at in range(0, len(kept), rows)]
        return np.concatenate(parts)

    def _of(self, which: Statistic, kept: NDArray[np.bool_]) -> Floats:
        if which == "mean":
            return np.asarray(kept @ self.values / kept.sum(axis=1), np.float64)
        below = np.cumsum(kept, axis=1, dtype=np.float64)
        shares = _harrell_davis(which, len(self.values), below / below[:, -1:])
        return np.asarray(np.diff(shares, axis=1, prepend=0.0) @ self.values, np.float64)


_GRID: Floats = np.linspace(0, 1, 20_001)


@lru_cache(maxsize=256)
def _beta_table(q: float, n: int) -> Floats:
    return np.asarray(special.betainc((n + 1) * q, (n + 1) * (1 - q), _GRID), np.float64)


def _harrell_davis(q: float, n: int, below: Floats) -> Floats:
    """Weight of all samples up to each: Beta((n+1)q, (n+1)(1-q)), by interpolation in a table."""
    return np.interp(below, _GRID, _beta_table(q, n))


def point(samples: Floats, which: Statistic) -> float:
    """The statistic of plain samples."""
    return float(samples.mean()) if which == "mean" else float(np.quantile(samples, which))


def effect(blocks: Sequence[tuple[Floats, Floats]], metric: Metric, *, resamples: int, seed: int) -> Effect:
    """(base, head) samples of each block, all above zero -> how much worse head is."""
    centred = []
    for base, head in blocks:
        level = math.sqrt(float(np.median(base)) * float(np.median(head)))
        centred.append((base / level, head / level))
    arms = Pool.of([b for b, _ in centred]), Pool.of([h for _, h in centred])
    sign = 1.0 if metric.better == "lower" else -1.0

    def worse(kept: NDArray[np.bool_]) -> Floats:
        was, now = (pool.statistic(metric.quantile, kept) for pool in arms)
        return sign * np.log(now / was)

    n = len(blocks)
    out = n // 2
    rng = np.random.Generator(np.random.PCG64(seed))
    halves = rng.permuted(np.tile(np.arange(n) >= out, (resamples, 1)), axis=1)
    error = math.sqrt((n - out) / out) * float(worse(halves).std())
    freedom = n - 1.0 if metric.quantile == "mean" else 2 / (2 / (n - 1) + DENSITY / math.sqrt(n))
    return Effect(float(worse(np.ones((1, n), np.bool_))[0]), error, n, freedom)
