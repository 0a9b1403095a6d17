"""The same requests on both servers: ratios request by request, uncertainty block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fwopt.evals.statistics import mcnemar
from fwopt.metrics.records import FINISHED, Records
from fwopt.quality.statistics import Bootstrap
from fwopt.spec.ab import Failures, LatencyFigure, LatencyMetric, LatencyVerdict, Ratio

_EXACT_BLOCKS = 14
"""Up to so many blocks every flip of signs is tried; beyond, `_FLIPS` of them are drawn."""
_FLIPS = 20_000
_MOST_TIMES = 1000.0


@dataclass(frozen=True, slots=True)
class Block:
    """One stretch of the workload, replayed on A and on B."""

    a: Records
    b: Records


def _ttft(records: Records) -> NDArray[np.float64]:
    return records.first_token_s - records.arrival_s


def _tpot(records: Records) -> NDArray[np.float64]:
    gaps = records.output_tokens - 1
    return np.where(gaps > 0, (records.finish_s - records.first_token_s) / np.maximum(gaps, 1), np.nan)


def _e2e(records: Records) -> NDArray[np.float64]:
    return records.finish_s - records.arrival_s


_METRICS: dict[LatencyMetric, Callable[[Records], NDArray[np.float64]]] = {"ttft": _ttft, "tpot": _tpot, "e2e": _e2e}


def latencies(blocks: Sequence[Block], *, slowdown: float, seed: int) -> list[LatencyFigure]:
    """Verdicts here know nothing of each other: `slower` is to be confirmed among all checks."""
    found = (_figure(metric, blocks, slowdown, seed) for metric in _METRICS)
    return [figure for figure in found if figure is not None]


def failures(blocks: Sequence[Block]) -> Failures:
    a, b = (np.concatenate([getattr(block, arm).status != FINISHED for block in blocks]) for arm in ("a", "b"))
    p = mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
    return Failures(requests=len(a), a=int(a.sum()), b=int(b.sum()), p_value=p)


def _figure(metric: LatencyMetric, blocks: Sequence[Block], slowdown: float, seed: int) -> LatencyFigure | None:
    """None: no request has this latency on both servers."""
    read = _METRICS[metric]
    times: list[tuple[NDArray[np.float64], NDArray[np.float64], int]] = []
    for number, block in enumerate(blocks):
        a, b = read(block.a), read(block.b)
        both = (block.a.status == FINISHED) & (block.b.status == FINISHED) & (a > 0) & (b > 0)
        if both.any():
            times.append((a[both], b[both], number))
    if not times:
        return None
    a, b = (np.concatenate([entry[i] for entry in times]) for i in (0, 1))
    block_of = np.concatenate([np.full(len(entry[0]), entry[2], np.int64) for entry in times])
    change = np.log(b) - np.log(a)
    found = Bootstrap(seed).mean(change, block_of)
    low, high = (-math.inf, math.inf) if found.low is None or found.high is None else (found.low, found.high)
    p = sign_flips(np.array([np.log(e[1]).mean() - np.log(e[0]).mean() for e in times]), seed)
    limit = math.log1p(slowdown)
    verdict, more = judge(found.value, low, high, limit, len(a))
    return LatencyFigure(
        metric=metric, requests=len(a), blocks=len(times), a_p50_s=_quantile(a, 0.5), b_p50_s=_quantile(b, 0.5),
        a_p95_s=_quantile(a, 0.95), b_p95_s=_quantile(b, 0.95),
        ratio=Ratio(value=math.exp(found.value), low=math.exp(low), high=min(math.exp(min(high, 700.0)), 1e300)),
        p_value=p, verdict=verdict, more_requests=more,
    )  # fmt: skip


def judge(value: float, low: float, high: float, limit: float, requests: int) -> tuple[LatencyVerdict, int | None]:
    """(verdict, more requests that would decide) of a mean log ratio; intervals shrink with the root of requests."""
    if high <= limit:
        return "not slower", None
    if low > 0:
        return "slower", None
    times = 1.0
    while times < _MOST_TIMES:
        times *= 1.05
        root = math.sqrt(times)
        if value + (high - value) / root <= limit or value - (value - low) / root > 0:
            return "undecided", max(1, math.ceil(requests * (times - 1)))
    return "undecided", None


def sign_flips(means: NDArray[np.float64], seed: int) -> float:
    """Two-sided p-value of blocks' mean differences: servers that are alike could as well have been swapped."""
    if len(means) <= _EXACT_BLOCKS:
        signs = np.array(list(product((1.0, -1.0), repeat=len(means))))
    else:
        drawn = np.random.default_rng(seed).choice((1.0, -1.0), (_FLIPS, len(means)))
        signs = np.vstack([np.ones(len(means)), drawn])
    sums = np.abs(signs @ means)
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def _quantile(values: NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share))
