"""`summarize`: every metric from one set of request records; definitions in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fwopt.metrics.records import FINISHED, STATUS_NAMES, Records
from fwopt.spec.objective import LatencyMetric, Slo
from fwopt.spec.outcome import Distribution, Metrics

Statistic = float | Literal["mean"]


def latencies(records: Records, metric: LatencyMetric) -> NDArray[np.float64]:
    """Seconds per request, in trace order; infinite where the request got no answer.

    `tpot` has entries only for requests with at least two output tokens (a single token has no gap), plus
    one infinite entry for each unanswered request. `itl` is a histogram over tokens, not a value per request.
    """
    lost = records.status != FINISHED
    with np.errstate(invalid="ignore"):
        if metric == "ttft":
            value = records.first_token_s - records.arrival_s
        elif metric == "e2e":
            value = records.finish_s - records.arrival_s
        elif metric == "queue":
            value = records.scheduled_s - records.arrival_s
        elif metric == "tpot":
            several = lost | (records.output_tokens > 1)
            value = (records.finish_s - records.first_token_s)[several] / np.maximum(
                records.output_tokens[several] - 1, 1
            )
            return np.where(lost[several], math.inf, value)
        else:
            raise ValueError(f"{metric} is not a latency per request")
    return np.where(lost, math.inf, value)


def statistic(records: Records, metric: LatencyMetric, which: Statistic) -> float | None:
    """One statistic in seconds; None when it is infinite or there is nothing to measure.

    Quantiles count unanswered requests as infinitely slow; the mean is over answered ones.
    """
    if metric == "itl":
        return _gap_statistic(records, which)
    return _pick(np.sort(latencies(records, metric)), which)


def held_to(records: Records, metric: LatencyMetric, which: Statistic) -> float | None:
    """One statistic in seconds as a limit or goal takes it; None when it is infinite.

    Where every answer is one token long there are no gaps: nobody waits between tokens, so `tpot` and `itl` are 0
    for the answered, and a limit on them can be missed by refusals alone. `itl` counts tokens, and a refused request
    has none: its quantiles are infinite where those over requests would be.
    """
    answered = records.status == FINISHED
    refusals = np.sort(np.where(answered, 0.0, math.inf))
    if metric in ("tpot", "itl") and answered.any() and not (records.output_tokens[answered] > 1).any():
        return _pick(refusals, which)
    if metric == "itl" and _pick(refusals, which) is None:
        return None
    return statistic(records, metric, which)


def _pick(ordered: NDArray[np.float64], which: Statistic) -> float | None:
    """Quantile by linear interpolation between order statistics (numpy's default)."""
    if which == "mean":
        answered = ordered[np.isfinite(ordered)]
        return float(answered.mean()) if len(answered) else None
    if len(ordered) == 0:
        return None
    position = which * (len(ordered) - 1)
    low = int(position)
    value = float(ordered[low])
    if position > low and math.isfinite(value):
        value += (position - low) * (float(ordered[low + 1]) - value)
    return value if math.isfinite(value) else None


def _gap_statistic(records: Records, which: Statistic) -> float | None:
    counts, edges = records.itl_counts, records.itl_edges_s
    total = float(counts.sum())
    if total == 0:
        return None
    if which == "mean":
        return float((counts * np.sqrt(edges[1:] * edges[:-1])).sum() / total)
    below = np.cumsum(counts)
    i = int(np.searchsorted(below, which * total))
    inside = (which * total - (below[i] - counts[i])) / counts[i]
    return float(edges[i] * (edges[i + 1] / edges[i]) ** inside)


def distribution(records: Records, metric: LatencyMetric) -> Distribution:
    if metric == "itl":
        filled = np.flatnonzero(records.itl_counts)
        top = float(records.itl_edges_s[filled[-1] + 1]) if len(filled) else None
        p50, p90, p95, p99 = (_gap_statistic(records, q) for q in (0.5, 0.9, 0.95, 0.99))
        return Distribution(
            mean_s=_gap_statistic(records, "mean"), p50_s=p50, p90_s=p90, p95_s=p95, p99_s=p99, max_s=top
        )
    ordered = np.sort(latencies(records, metric))
    p50, p90, p95, p99 = (_pick(ordered, q) for q in (0.5, 0.9, 0.95, 0.99))
    top = float(ordered[-1]) if len(ordered) and math.isfinite(ordered[-1]) else None
    return Distribution(mean_s=_pick(ordered, "mean"), p50_s=p50, p90_s=p90, p95_s=p95, p99_s=p99, max_s=top)


def within_limits(records: Records, slos: Sequence[Slo]) -> NDArray[np.bool_]:
    """Requests that finished within every per-request limit."""
    good: NDArray[np.bool_] = records.status == FINISHED
    for slo in slos:
        if slo.metric in ("itl",):
            continue
        if slo.metric == "tpot":
            with np.errstate(invalid="ignore"):
                value = (records.finish_s - records.first_token_s) / np.maximum(records.output_tokens - 1, 1)
            good &= (records.output_tokens < 2) | (value < slo.limit_s)
        else:
            good &= latencies(records, slo.metric) < slo.limit_s
    return good


def summarize(records: Records, slos: Sequence[Slo] = ()) -> Metrics:
    """All metrics of a run; goodput counts requests within every limit of `slos`, quantile or not."""
    finished = records.status == FINISHED
    count = int(finished.sum())
    first = float(records.arrival_s.min())
    last = float(records.finish_s[finished].max()) if count else float(records.arrival_s.max())
    duration = max(last - first, 1e-9)
    output = int(records.output_tokens[finished].sum())
    rejected = {
        STATUS_NAMES[code]: int((records.status == code).sum())
        for code in range(1, len(STATUS_NAMES))
        if (records.status == code).any()
    }
    return Metrics(
        requests=len(records),
        finished=count,
        rejected=rejected,
        duration_s=duration,
        prompt_tokens=int(records.prompt_tokens[finished].sum()),
        output_tokens=output,
        cached_prompt_tokens=int(records.cached_tokens[finished].sum()),
        ttft=distribution(records, "ttft"),
        tpot=distribution(records, "tpot"),
        itl=distribution(records, "itl"),
        e2e=distribution(records, "e2e"),
        queue=distribution(records, "queue"),
        output_tokens_per_s=output / duration,
        requests_per_s=count / duration,
        goodput_requests_per_s=int(within_limits(records, slos).sum()) / duration,
        preemptions=int(records.preemptions.sum()),
    )
