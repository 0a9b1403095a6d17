"""What `fwopt ab` found: two servers on the same items and the same requests, alternately."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.evals import CONFIDENCE, EvalSettings, Graded, Paired, Served

Arm = Literal["a", "b"]
Label = Literal["X", "Y"]
LatencyMetric = Literal["ttft", "tpot", "e2e"]
LatencyVerdict = Literal["not slower", "slower", "undecided"]
"""not slower: the whole interval lies below 1 + slowdown; slower: it lies above 1, and the p-value holds among all
checks (Holm)."""
AbVerdict = Literal["holds", "worse", "undecided"]
"""holds: B is not worse than A by more than the margins, in everything that was compared; worse: in something."""


class AbSettings(Frozen):
    """What the comparison depends on, beside servers, items and requests."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order, the labels, the draw of items and the intervals."""
    blocks: Annotated[int, Field(ge=8, le=1000)] = 12
    """Pairs of short replays, one on each server; what varies between them makes the interval."""
    requests: Annotated[int, Field(ge=1)] = 240
    """Of the workload, over all blocks; each is sent to both servers."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Largest drop of an eval set's mean score that passes, as a share."""
    slowdown: Annotated[float, Field(ge=0)] = 0.05
    """Largest growth of a latency that passes, as a share."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Closed loop with so many requests in flight; None: the recorded times."""
    rate_scale: Annotated[float, Field(gt=0)] = 1.0
    evals: EvalSettings = EvalSettings()


class Ratio(Frozen):
    """B's latency over A's, the geometric mean over requests, with its 95 % interval over blocks."""

    value: float
    low: float
    high: float


class LatencyFigure(Frozen):
    """One latency, request by request."""

    metric: LatencyMetric
    requests: int
    """That both servers finished."""
    blocks: int
    a_p50_s: float
    b_p50_s: float
    a_p95_s: float
    b_p95_s: float
    ratio: Ratio
    p_value: float
    """That the servers are equally fast: signs of whole blocks flipped, as the order was drawn."""
    verdict: LatencyVerdict
    more_requests: int | None
    """Where undecided: about so many more decide if they come out as these did."""


class AbSet(Frozen):
    """One eval set; A is the reference."""

    set: str
    digest: str
    paired: Paired
    """Its verdict `worse` holds among all checks (Holm)."""
    a_errors: int
    b_errors: int


class Failures(Frozen):
    """Requests of the workload that a server did not finish."""

    requests: int
    a: int
    b: int
    p_value: float
    """Exact McNemar."""


class AbResult(Frozen):
    """`ab.json`: the servers, what was found, and the verdict on B."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    started_at: str
    seconds: float
    a: Served
    b: Served
    labels: dict[Label, Arm]
    """Which server is which in the files of answers and replays, for those who read them blind first."""
    settings: AbSettings
    workload: str | None
    workload_digest: str | None
    latency: tuple[LatencyFigure, ...]
    failures: Failures | None
    sets: tuple[AbSet, ...]
    problems: tuple[str, ...]
    """Why latencies may not be believed: then nothing is decided on them."""
    verdict: AbVerdict
    reasons: tuple[str, ...]
    confidence: float = CONFIDENCE
    machine: str


class AbAnswer(Frozen):
    """A line of `answers.jsonl.gz`: what one server answered, under its label."""

    set: str
    label: Label
    answer: Graded
