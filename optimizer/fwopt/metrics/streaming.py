"""The metrics of `summarize` from records that come in parts and are not kept.

Counts, means and extremes are exact. Each latency goes into a histogram with logarithmic bins 1 % wide, so that memory
does not depend on the number of requests; a quantile is then known to half a bin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fwopt.metrics.records import FINISHED, STATUS_NAMES, Records
from fwopt.metrics.summary import distribution, latencies, within_limits
from fwopt.spec.objective import LatencyMetric, Slo
from fwopt.spec.outcome import Distribution, Metrics

BIN_WIDTH = 0.01
"""Relative width of a bin."""
LEAST_S, MOST_S = 1e-6, 1e9
"""Latencies below the least (a request that did not queue at all) share one bin, which counts as its smallest value."""
_GROWTH = math.log1p(BIN_WIDTH)
_BINS = 1 + math.ceil(math.log(MOST_S / LEAST_S) / _GROWTH)


@dataclass(slots=True)
class Histogram:
    """Latencies of any number of requests; bin 0 holds those below `LEAST_S`."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))
    total_s: float = 0.0
    least_s: float = math.inf
    most_s: float = 0.0
    lost: int = 0
    """Requests without an answer: infinitely slow."""

    def add(self, seconds: NDArray[np.float64]) -> None:
        answered = seconds[np.isfinite(seconds)]
        self.lost += len(seconds) - len(answered)
        if len(answered) == 0:
            return
        with np.errstate(divide="ignore"):
            at = np.floor(np.log(answered / LEAST_S) / _GROWTH) + 1
        self.counts += np.bincount(np.clip(at, 0, _BINS - 1).astype(np.int64), minlength=_BINS)
        self.total_s += float(answered.sum())
        self.least_s = min(self.least_s, float(answered.min()))
        self.most_s = max(self.most_s, float(answered.max()))

    def quantile(self, q: float) -> float | None:
        """As `statistic` defines it: linear between two order statistics, each known to half a bin."""
        below = np.cumsum(self.counts)
        if below[-1] + self.lost == 0:
            return None
        position = q * float(below[-1] + self.lost - 1)
        low = int(position)
        value = self._order_statistic(below, low)
        if position > low and math.isfinite(value):
            value += (position - low) * (self._order_statistic(below, low + 1) - value)
        return value if math.isfinite(value) else None

    def _order_statistic(self, below: NDArray[np.int64], rank: int) -> float:
        at = int(np.searchsorted(below, rank, side="right"))
        if at == _BINS:
            return math.inf
        middle = LEAST_S * math.exp((at - 0.5) * _GROWTH) if at else 0.0
        return min(max(middle, self.least_s), self.most_s)

    def distribution(self) -> Distribution:
        answered = int(self.counts.sum())
        p50, p90, p95, p99 = (self.quantile(q) for q in (0.5, 0.9, 0.95, 0.99))
        return Distribution(
            mean_s=self.total_s / answered if answered else None,
            p50_s=p50,
            p90_s=p90,
            p95_s=p95,
            p99_s=p99,
            max_s=self.most_s if answered and not self.lost else None,
        )


_PER_REQUEST: tuple[LatencyMetric, ...] = ("ttft", "tpot", "e2e", "queue")


@dataclass(slots=True)
class Accumulator:
    """Every metric of a run whose records pass by once; `slos` are the limits that goodput counts."""

    slos: Sequence[Slo] = ()
    histograms: dict[LatencyMetric, Histogram] = field(default_factory=lambda: {m: Histogram() for m in _PER_REQUEST})
    status: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    first_s: float = math.inf
    last_arrival_s: float = -math.inf
    last_finish_s: float = -math.inf

    def add(self, records: Records) -> None:
        """Requests whose fate is known: each exactly once, in any order."""
        if len(records) == 0:
            return
        for metric, histogram in self.histograms.items():
            histogram.add(latencies(records, metric))
        finished = records.status == FINISHED
        for code, count in zip(*np.unique(records.status, return_counts=True), strict=True):
            self.status[int(code)] += int(count)
        for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
            self.sums[name] += int(getattr(records, name)[finished].sum())
        self.sums["preemptions"] += int(records.preemptions.sum())
        self.sums["good"] += int(within_limits(records, self.slos).sum())
        self.first_s = min(self.first_s, float(records.arrival_s.min()))
        self.last_arrival_s = max(self.last_arrival_s, float(records.arrival_s.max()))
        if finished.any():
            self.last_finish_s = max(self.last_finish_s, float(records.finish_s[finished].max()))

    @property
    def span_s(self) -> float:
        """First arrival to last completion; 0 when nothing finished."""
        return self.last_finish_s - self.first_s if self.status[FINISHED] else 0.0

    def metrics(self, gaps: Records) -> Metrics:
        """All metrics; inter-token gaps from the histogram that `gaps` carries, over all requests."""
        count = self.status[FINISHED]
        duration = max(self.span_s if count else self.last_arrival_s - self.first_s, 1e-9)
        of = {metric: histogram.distribution() for metric, histogram in self.histograms.items()}
        return Metrics(
            requests=self.status.total(),
            finished=count,
            rejected={STATUS_NAMES[code]: self.status[code] for code in sorted(self.status) if code != FINISHED},
            duration_s=duration,
            prompt_tokens=self.sums["prompt_tokens"],
            output_tokens=self.sums["output_tokens"],
            cached_prompt_tokens=self.sums["cached_tokens"],
            ttft=of["ttft"],
            tpot=of["tpot"],
            itl=distribution(gaps, "itl"),
            e2e=of["e2e"],
            queue=of["queue"],
            output_tokens_per_s=self.sums["output_tokens"] / duration,
            requests_per_s=count / duration,
            goodput_requests_per_s=self.sums["good"] / duration,
            preemptions=self.sums["preemptions"],
        )
