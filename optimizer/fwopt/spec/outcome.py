"""What became of a candidate: an evaluation or a rejection. Failure is a value, stored beside success."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fwopt.spec.base import Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import Goal, Slo
from fwopt.spec.provenance import ProvenanceShares

Rung = Literal["memory", "bound", "dominated", "quality", "unmeasured", "simulation", "live"]


class Rejected(Frozen):
    """Why a candidate cannot, or need not, be evaluated further."""

    kind: Literal["rejected"] = "rejected"
    candidate_id: str
    rung: Rung
    reason: str
    """One short sentence; the same cause always has the same words, so that reasons can be counted."""
    need: float | None = None
    have: float | None = None
    unit: str | None = None


class Distribution(Frozen):
    """Quantiles of a latency over all requests, in seconds.

    A request that was rejected never answers: it counts as infinitely slow, so a quantile that
    falls among rejected requests is None. The mean is over answered requests.
    """

    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None
    max_s: float | None


class Metrics(Frozen):
    """Everything `fwopt.metrics.summarize` computes from one set of request records."""

    requests: int
    finished: int
    rejected: dict[str, int]
    """Requests refused, by reason."""
    duration_s: float
    """First arrival to last completion."""
    prompt_tokens: int
    """Of finished requests."""
    output_tokens: int
    """Of finished requests."""
    cached_prompt_tokens: int
    """Prompt tokens found in the prefix cache."""
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2e: Distribution
    queue: Distribution
    output_tokens_per_s: float
    requests_per_s: float
    goodput_requests_per_s: float
    """Finished requests per second that kept every per-request limit of the objective."""
    preemptions: int


class SloResult(Frozen):
    """One limit and what was found."""

    slo: Slo
    value_s: float | None
    """None: the quantile falls among rejected requests (infinite)."""
    met: bool


class GoalResult(Frozen):
    """One goal and its value (seconds, dollars per 1M output tokens, GPUs, or requests/s)."""

    goal: Goal
    value: float | None


class Cost(Frozen):
    """What the deployment costs at the trace's own load; idle time is paid for."""

    usd_per_hour: float
    usd_per_1m_output_tokens: float | None
    usd_per_1m_tokens: float | None
    """Prompt and output tokens together."""


class Evaluation(Frozen):
    """What one candidate achieves on one workload."""

    kind: Literal["evaluation"] = "evaluation"
    candidate_id: str
    source: Literal["simulated", "measured"]
    metrics: Metrics
    slos: tuple[SloResult, ...]
    goals: tuple[GoalResult, ...]
    feasible: bool
    """Every SLO met."""
    slack: float | None
    """Largest value/limit over all SLOs (below 1: met); None when there are no SLOs or one is infinite."""
    cost: Cost | None
    provenance: ProvenanceShares
    kv_blocks_per_replica: int
    peak_kv_blocks: int
    mean_batch: float
    """Sequences in the average engine step, weighted by time."""
    busy_share: float
    """Share of time in which the average replica had work."""


Outcome = Annotated[Evaluation | Rejected, Field(discriminator="kind")]


class Trial(Frozen):
    """One line of `trials.jsonl`."""

    number: int
    candidate: Candidate
    role: Literal["baseline", "search", "capacity", "nearest"] = "search"
    """`nearest`: simulated although the roofline rejects it, only to say how near the best comes when nothing fits."""
    rate_scale: float = 1.0
    """Multiple of the workload's arrival rate at which this was evaluated; other than 1 for `capacity` only."""
    outcome: Outcome
