"""The verdict on two results, metric by metric, with what moved."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import SCHEMA_VERSION, Frozen

Verdict = Literal["pass", "fail", "inconclusive"]
Design = Literal["interleaved", "sessions", "exact"]
"""interleaved: blocks of both arms, measured together; sessions: against a history of sessions; exact: no noise."""


class Part(Frozen):
    """One part of the time, in both arms."""

    part: str
    kind: Literal["operator", "cpu gap", "queueing", "cache", "other"]
    base_s: float
    head_s: float
    share: float
    """Of the whole change; below zero: it moved the other way."""


class MetricVerdict(Frozen):
    """One metric of one bench."""

    bench: str
    metric: str
    unit: str
    better: Literal["lower", "higher"]
    verdict: Verdict
    improved: bool
    """Significantly better, by more than the minimum effect."""
    base: float | None
    """The statistic over all samples of the arm."""
    head: float | None
    effect: float | None
    """Relative change for the worse: 0.05 is five per cent slower, or five per cent less throughput."""
    low: float | None
    """Interval of the effect at the level of the look that decided."""
    high: float | None
    min_effect: float | None
    min_effect_from: Literal["stated", "A/A", "exact", "sessions"] | None
    p_worse: float | None
    """That equal arms look this much worse; adjusted for the number of metrics (Holm)."""
    p_not_worse: float | None
    """That an arm worse by the minimum effect looks this good."""
    blocks: int
    """Blocks, or sessions, that the verdict rests on."""
    look: int | None
    """Which look decided, from 1; None: none did."""
    reason: str


class Comparison(Frozen):
    """Two results held against each other."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["bench-comparison"] = "bench-comparison"
    fwopt_version: str
    suite: str
    verdict: Verdict
    design: Design
    base: str
    """Commit or moment of the base."""
    head: str
    metrics: tuple[MetricVerdict, ...]
    explanation: dict[str, tuple[Part, ...]]
    """Bench -> parts of the time, those that moved most first; only where runs state their parts."""
    notes: tuple[str, ...]


class Change(Frozen):
    """A metric changed for good, somewhere after one commit and no later than another."""

    after: str
    """Last commit of the old level."""
    up_to: str
    """First commit that surely is of the new level."""
    commits: tuple[str, ...]
    """Those that may have changed it, `up_to` included."""
    effect: float
    """Relative change for the worse."""
    p: float
    """Share of random orders of the same values that split as well."""


class Series(Frozen):
    """One metric over the sessions of one key; what `fwopt bench history --json` prints a list of."""

    suite: str
    key: str
    bench: str
    metric: str
    unit: str
    better: Literal["lower", "higher"]
    commits: tuple[str, ...]
    made_at: tuple[str, ...]
    values: tuple[float, ...]
    promoted: tuple[bool, ...]
    changes: tuple[Change, ...]
