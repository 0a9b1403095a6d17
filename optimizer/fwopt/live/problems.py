"""Whether a replay may be believed: every rule and threshold of the client, in one place."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fwopt.live.rows import Rows
from fwopt.metrics.records import FAILED, FINISHED, STATUS_NAMES
from fwopt.spec.base import Frozen

MAX_LAG_P99_S = 0.010
"""Requests sent, or the clock read, later than this at p99 make a run invalid ..."""
MAX_SEND_LAG_SHARE = 0.05
"""... unless that is less than this share of the median time to first token (requests) ..."""
MAX_CLOCK_LAG_SHARE = 0.25
"""... or than this share of the median time per output token (clock): an answer's average is then far closer."""
MAX_MISCOUNTED = 0.01
"""More answers than this share with other token counts than the trace's make a run invalid."""

ProblemName = Literal[
    "client lag",
    "clock lag",
    "prompt tokens differ",
    "output tokens differ",
    "output length not forced",
    "usage missing",
    "interrupted",
    "warm-up incomplete",
    "requests failed",
    "nothing finished",
]


class Problem(Frozen):
    """One thing that a reader of the numbers must know."""

    name: ProblemName
    count: int
    of: int
    detail: str
    invalidates: bool
    """The numbers do not say what the server does on this workload."""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


class Lag(Frozen):
    """How late something was, in seconds."""

    count: int
    mean_s: float
    p50_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, late_s: NDArray[np.float64]) -> Lag:
        if not len(late_s):
            return cls(count=0, mean_s=0.0, p50_s=0.0, p99_s=0.0, max_s=0.0)
        p50, p99 = np.quantile(late_s, (0.5, 0.99))
        return cls(
            count=len(late_s),
            mean_s=float(late_s.mean()),
            p50_s=float(p50),
            p99_s=float(p99),
            max_s=float(late_s.max()),
        )


def send_lag(rows: Rows) -> Lag:
    """From when each request was due to when the client turned to it."""
    late = rows.started_s - rows.scheduled_s
    return Lag.of(late[np.isfinite(late)])


def find(
    rows: Rows,
    prompt_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
    *,
    forced: bool,
    clock_lag: Lag,
    complete: bool,
    warm_up_failures: int,
) -> tuple[Problem, ...]:
    """Problems of a run, those that invalidate it first."""
    finished = rows.status == FINISHED
    found = _lags(rows, finished, clock_lag)
    found += _counts(rows, finished, prompt_tokens, output_tokens, forced)
    offered = int(rows.offered.sum())
    if not complete:
        detail = f"stopped before its end, {offered:,} of {len(rows):,} requests offered"
        found.append(Problem(name="interrupted", count=offered, of=len(rows), detail=detail, invalidates=True))
    if warm_up_failures:
        detail = f"{warm_up_failures:,} requests of the warm-up did not finish: the cache is not as warm as stated"
        found.append(
            Problem(name="warm-up incomplete", count=warm_up_failures, of=len(rows), detail=detail, invalidates=True)
        )
    found += _failures(rows, offered, int(finished.sum()))
    return tuple(sorted(found, key=lambda p: not p.invalidates))


def _lags(rows: Rows, finished: NDArray[np.bool_], clock_lag: Lag) -> list[Problem]:
    ttft = (rows.first_token_s - rows.started_s)[finished]
    several = finished & (rows.token_events > 1)
    tokens = np.maximum(np.where(rows.completion_usage >= 0, rows.completion_usage, rows.token_events), 2)[several]
    tpot = (rows.last_token_s - rows.first_token_s)[several] / (tokens - 1)
    found = []
    for lag, share, of, what, name in (
        (send_lag(rows), MAX_SEND_LAG_SHARE, ttft, "requests were sent", "client lag"),
        (clock_lag, MAX_CLOCK_LAG_SHARE, tpot, "the client read the clock", "clock lag"),
    ):
        allowed = max(MAX_LAG_P99_S, share * float(np.median(of)) if len(of) else 0.0)
        if lag.p99_s > allowed:
            detail = (
                f"{what} up to {lag.p99_s * 1e3:.1f} ms late (p99; at most {allowed * 1e3:.1f} ms is valid): "
                "give the client a core of its own, or lower the rate"
            )
            found.append(Problem(name=name, count=lag.count, of=lag.count, detail=detail, invalidates=True))
    return found


def _counts(
    rows: Rows, finished: NDArray[np.bool_], prompts: NDArray[np.int32], outputs: NDArray[np.int32], forced: bool
) -> list[Problem]:
    """The server's own token counts beside the trace's."""
    found = []
    answered = int(finished.sum())
    told = finished & (rows.completion_usage >= 0)
    if answered > (with_usage := int(told.sum())):
        missing = answered - with_usage
        detail = f"the server told no token counts for {missing:,} of {answered:,} answers: events were counted instead"
        found.append(Problem(name="usage missing", count=missing, of=answered, detail=detail, invalidates=False))
    if not forced:
        detail = "this server does not let the client force output lengths; it was only told the most"
        found.append(
            Problem(name="output length not forced", count=answered, of=answered, detail=detail, invalidates=False)
        )
    for name, got, wanted, strict in (
        ("prompt tokens differ", rows.prompt_usage, prompts, True),
        ("output tokens differ", rows.completion_usage, outputs, forced),
    ):
        wrong = told & (got != wanted)
        if not wrong.any():
            continue
        count, first = int(wrong.sum()), int(np.flatnonzero(wrong)[0])
        detail = (
            f"{count:,} of {with_usage:,} answers by the server's count, by {int((got - wanted)[wrong].sum()):+,} "
            f"tokens in all; the first: request {first}, {got[first]:,} instead of {wanted[first]:,}"
        )
        bad = strict and count > MAX_MISCOUNTED * with_usage
        found.append(Problem(name=name, count=count, of=with_usage, detail=detail, invalidates=bad))
    return found


def _failures(rows: Rows, offered: int, finished: int) -> list[Problem]:
    found = []
    failed = rows.status >= FAILED
    if failed.any():
        codes, counts = np.unique(rows.status[failed], return_counts=True)
        kinds = ", ".join(f"{n:,} {STATUS_NAMES[c]}" for c, n in zip(codes.tolist(), counts.tolist(), strict=True))
        detail = f"{kinds}; the first: {rows.errors.get(int(np.flatnonzero(failed)[0]), 'no reason known')}"
        count = int(failed.sum())
        found.append(Problem(name="requests failed", count=count, of=offered, detail=detail, invalidates=False))
    if offered and not finished:
        found.append(
            Problem(name="nothing finished", count=offered, of=offered, detail="no request finished", invalidates=True)
        )
    return found
