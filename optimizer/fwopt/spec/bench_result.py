"""What `fwopt bench run` measured: raw samples of one arm, so that any two results can be compared again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.bench import ArmName, Metric, Rules

Samples = tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
"""Above zero: changes are relative."""


class Run(Frozen):
    """One visit to one arm."""

    block: int
    """Runs of both arms with the same number lie side by side in time."""
    position: int
    """In the session, counted over all arms and benches."""
    started_s: float
    """Since the session began."""
    samples: dict[str, Samples]
    """Series -> samples, in the order they were taken."""
    lost: int = 0
    """Requests without an answer; they have no sample."""
    parts: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Where the time went, in seconds of whatever one sample is; what a regression is explained by."""
    problem: str | None = None
    """Why the run does not count; None: it does."""


class Probe(Frozen):
    """A fixed piece of arithmetic and copying, timed between blocks: how fast the machine itself was."""

    at_s: float
    seconds: float


class Key(Frozen):
    """What a figure is a figure of."""

    hardware: str
    """Processor and cores, and GPUs."""
    engine: str
    """Engine or build, with its version."""
    model: str
    workload: str
    """Digest of the requests, or of the command or operator that is timed."""
    config: str
    """Digest of the configuration that was deployed."""


class BenchResult(Frozen):
    """One bench of a suite, on one arm."""

    name: str
    kind: Literal["command", "simulated", "kernels", "live"]
    key: Key
    metrics: tuple[Metric, ...]
    exact: bool
    """No noise: equal inputs give equal samples."""
    runs: tuple[Run, ...]
    aa_runs: tuple[Run, ...] = ()
    """The base arm measured as both arms (A/A), before the comparison; the outer two runs of a block stand for one."""
    notes: tuple[str, ...] = ()
    """State of the cache, warm-up, and whatever else the samples depend on."""


class Result(Frozen):
    """One arm of one session."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["bench-result"] = "bench-result"
    fwopt_version: str
    suite: str
    suite_digest: str
    """Of what is measured: benches and metrics, not rules and arms."""
    session: str
    """Equal in results that were measured together, interleaved."""
    arm: ArmName
    made_at: str
    """ISO 8601, UTC."""
    commit: str | None
    """Of the code under test."""
    machine: dict[str, str]
    """Processor, cores, kernel, driver, clocks, load."""
    probes: tuple[Probe, ...] = ()
    benches: tuple[BenchResult, ...]
    rules: Rules
