"""Chosen beside baseline, row by row; the same rows in every renderer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.report.facts import FAR, usd_per_month
from fwopt.spec.outcome import Evaluation, SloResult
from fwopt.spec.plan import Entry, QualityEstimate

Show = Callable[[Entry], str]


@dataclass(frozen=True, slots=True)
class Row:
    """One measure; `values` in the order of the entries given."""

    name: str
    limit: str
    values: tuple[str, ...]
    met: tuple[bool | None, ...]
    """None where no limit applies."""
    evidence: str
    """Where the number comes from: `latency`, `price`, `quality` or `settings` (anchors of the HTML report)."""
    essential: bool = True
    """Shown on a narrow terminal too."""


def rows(entries: list[Entry]) -> list[Row]:
    """Limits first, then cost, capacity, quality and how everything is known."""
    found = [_slo(entries, i) for i in range(len(entries[0].evaluation.slos))] if entries else []
    found += [Row(name, "", tuple(show(e) for e in entries), (None,) * len(entries), evidence, essential)
              for name, evidence, essential, show in _ROWS]  # fmt: skip
    return [r for r in found if set(r.values) != {f.NONE}]


def quality(estimate: QualityEstimate | None) -> str:
    """`top-1 98.7%, KL 0.0035 (assumed)`."""
    if estimate is None:
        return f.NONE
    if estimate.kl == 0 and estimate.top1 == 1:
        return "nothing lost: the published weights"
    return f"top-1 {f.percent(estimate.top1, 1)}, KL {estimate.kl:.2g} ({estimate.known})"


def room(result: SloResult) -> str:
    """`12% below` the limit, `15% OVER` it, or `35x THE LIMIT`."""
    if result.value_s is None:
        return "MISSED"
    ratio = result.value_s / result.slo.limit_s
    if result.met:
        return f"{f.percent(1 - ratio)} below"
    return f"{f.factor(ratio)} THE LIMIT" if ratio >= FAR else f"{f.percent(max(ratio - 1, 0.0))} OVER"


def result_of(evaluation: Evaluation, like: SloResult) -> SloResult | None:
    return next((r for r in evaluation.slos if r.slo == like.slo), None)


def _slo(entries: list[Entry], index: int) -> Row:
    first = entries[0].evaluation.slos[index]
    results = [result_of(e.evaluation, first) for e in entries]
    values = tuple(f.NONE if r is None else f"{f.seconds(r.value_s)}, {room(r)}" for r in results)
    met = tuple(None if r is None else r.met for r in results)
    return Row(f.slo_name(first.slo), f"< {f.seconds(first.slo.limit_s)}", values, met, "latency")


def _distribution(metric: str) -> Show:
    def show(entry: Entry) -> str:
        found = getattr(entry.evaluation.metrics, metric)
        if found.p50_s is None and found.mean_s is None:
            return f.NONE
        return f.seconds_listed((found.p50_s, found.p95_s, found.p99_s))

    return show


def _rejected(entry: Entry) -> str:
    metrics = entry.evaluation.metrics
    if not metrics.rejected or not sum(metrics.rejected.values()):
        return f"0 of {metrics.requests:,}"
    why = ", ".join(f"{n:,} {f.plain(reason)}" for reason, n in metrics.rejected.items())
    return f"{sum(metrics.rejected.values()):,} of {metrics.requests:,} ({why})"


def _capacity(entry: Entry) -> str:
    edge = entry.capacity
    if edge is None:
        return f.NONE
    return f"{f.factor(edge.rate_scale)} ({f.significant(edge.requests_per_s)} requests/s)"


def _breaks(entry: Entry) -> str:
    edge = entry.capacity
    if edge is None:
        return f.NONE
    return f.plain(edge.limited_by) if edge.limited_by else "none at the highest rate tried"


def _capacity_usd(entry: Entry) -> str:
    edge = entry.capacity
    if edge is None or edge.usd_per_1m_output_tokens is None:
        return f.NONE
    return f"{'at most ' if edge.limited_by is None else ''}{f.usd(edge.usd_per_1m_output_tokens)}"


def _cached(entry: Entry) -> str:
    metrics = entry.evaluation.metrics
    return f.percent(metrics.cached_prompt_tokens / metrics.prompt_tokens) if metrics.prompt_tokens else f.NONE


def _hourly(entry: Entry) -> str:
    cost = entry.evaluation.cost
    return f"{f.usd(cost.usd_per_hour)}, {f.usd(usd_per_month(entry))}" if cost else f.NONE


def _usd(field: str) -> Show:
    return lambda entry: f.usd(getattr(entry.evaluation.cost, field)) if entry.evaluation.cost else f.NONE


_ROWS: tuple[tuple[str, str, bool, Show], ...] = (
    ("GPUs", "settings", True, lambda e: str(e.candidate.parallelism.gpus)),
    ("$/1M output tokens at SLO capacity", "price", True, _capacity_usd),
    ("SLO capacity, x this traffic", "latency", True, _capacity),
    ("first SLO to break", "latency", True, _breaks),
    ("$/1M output tokens at this traffic", "price", True, _usd("usd_per_1m_output_tokens")),
    ("$/1M tokens, prompt included", "price", False, _usd("usd_per_1m_tokens")),
    ("$ per hour, per month of 730 h", "price", True, _hourly),
    ("TTFT p50 / p95 / p99", "latency", False, _distribution("ttft")),
    ("TPOT p50 / p95 / p99", "latency", False, _distribution("tpot")),
    ("ITL p50 / p95 / p99", "latency", False, _distribution("itl")),
    ("E2E p50 / p95 / p99", "latency", True, _distribution("e2e")),
    ("queue p50 / p95 / p99", "latency", False, _distribution("queue")),
    ("output tokens", "latency", False, lambda e: f.rate(e.evaluation.metrics.output_tokens_per_s)),
    ("requests", "latency", False, lambda e: f.rate(e.evaluation.metrics.requests_per_s)),
    ("goodput (requests)", "latency", False, lambda e: f.rate(e.evaluation.metrics.goodput_requests_per_s)),
    ("requests refused", "latency", True, _rejected),
    ("prompt tokens from prefix cache", "latency", False, _cached),
    ("preemptions", "latency", False, lambda e: f.count(e.evaluation.metrics.preemptions)),
    ("mean batch, time busy", "latency", False,
     lambda e: f"{f.significant(e.evaluation.mean_batch)}, {f.percent(e.evaluation.busy_share)}"),
    ("KV blocks per replica, peak used", "latency", False,
     lambda e: f"{e.evaluation.kv_blocks_per_replica:,}, {e.evaluation.peak_kv_blocks:,}"),
    ("quality against bf16", "quality", True, lambda e: quality(e.quality)),
    ("known by", "latency", True, lambda e: "measured live" if e.evaluation.source == "measured" else "simulated"),
    ("GPU time resting on", "latency", True, lambda e: f.provenance(e.evaluation.provenance)),
)  # fmt: skip
"""(name, evidence, on a narrow terminal too, how it reads)."""
