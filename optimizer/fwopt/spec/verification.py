"""What a live replay of a plan showed: measured beside promised, metric by metric, and why they differ."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.outcome import Metrics

Cause = Literal["client", "cache", "step time", "rest"]
"""client: requests were sent later than scheduled; cache: more or fewer prompt tokens were found cached; step time:
engine steps take longer or shorter than promised; rest: queueing and the HTTP front, what no other cause explains."""


class Slice(Frozen):
    """The stretch of the workload that was replayed, chosen so that its metrics match the whole one's in simulation."""

    start: int
    """First request, counted in order of arrival from 0."""
    stop: int
    """One past the last."""
    requests: int
    """In the whole workload."""
    digest: str
    """Of the stretch."""
    errors: dict[str, float]
    """Metric -> its value on the stretch over its value on the whole workload, minus one; both simulated."""

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.requests

    @property
    def largest_error(self) -> float:
        return max((abs(e) for e in self.errors.values()), default=0.0)


class Check(Frozen):
    """One metric."""

    metric: str
    """`ttft:p90`, `tpot:mean`, or `throughput` (output tokens per second)."""
    unit: Literal["s", "tokens/s"]
    promised_whole: float | None
    """By the plan, for the whole workload."""
    promised: float | None
    """By the same simulation, for the stretch that was replayed."""
    measured: float | None
    error: float | None
    """measured / promised - 1, on the stretch."""
    causes: dict[Cause, float]
    """Part of ln(measured / promised) that each cause explains; they add up to it."""


class Sending(Frozen):
    """How well the client kept to the schedule."""

    requests: int
    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float


class Verification(Frozen):
    """One live replay of one candidate."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    made_at: str
    """ISO 8601, UTC."""
    workload: str
    workload_digest: str
    model: str
    hardware: str
    engine: EngineSpec
    """That the plan is for."""
    server_version: str | None
    """That answered; None: it does not say."""
    candidate: Candidate
    plan: str | None
    """Content hash of the plan."""
    slice: Slice
    cache: str
    """State of the prefix cache at the start, and how it is known."""
    valid: bool
    """False: the client or the server spoilt the run, `problems` says how; nothing may be concluded from it."""
    problems: tuple[str, ...]
    checks: tuple[Check, ...]
    measured: Metrics
    promised: Metrics
    """Simulated, on the stretch."""
    sending: Sending
    step_factor: float | None
    """Multiple of the promised step times at which the simulation gives the measured mean TPOT; None: no TPOT."""
    environment: dict[str, str]
    """Machine and versions."""
