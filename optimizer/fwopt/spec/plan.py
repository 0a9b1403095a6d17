"""The answer: what to deploy, why, with what promised. Every file is text rendered from a Plan."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.kernels import KernelSet
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import Objective
from fwopt.spec.outcome import Evaluation, Outcome
from fwopt.spec.provenance import Interval
from fwopt.spec.quality import SchemeVerdict
from fwopt.spec.verification import Verification


class Capacity(Frozen):
    """The SLO's edge, found by scaling the trace's arrival rate."""

    rate_scale: float
    """Largest multiple of the workload's rate at which every SLO still holds, within `tolerance`."""
    tolerance: float
    requests_per_s: float
    output_tokens_per_s: float
    usd_per_1m_output_tokens: float | None
    limited_by: str | None
    """The SLO that breaks first just above the edge; None when the search's ceiling was reached."""


class Slower(Frozen):
    """What a candidate would achieve if every step of its engine took longer."""

    factor: float
    evaluation: Evaluation


class Entry(Frozen):
    """A candidate with what it promises."""

    candidate: Candidate
    evaluation: Evaluation
    capacity: Capacity | None = None
    if_slower: Slower | None = None
    """Of the chosen one: a queue multiplies what step times are off by."""
    quality: QualityEstimate | None = None
    draft: ModelSpec | None = None
    """The model that guesses tokens ahead, where the candidate has one."""
    needs_checkpoint: str | None = None
    """Set when the engine cannot quantize on load and a converted checkpoint must exist first."""


class QualityEstimate(Frozen):
    """What a scheme costs in quality against bf16, and how that is known."""

    kl: float
    """Mean KL divergence in nats per token."""
    top1: float
    """Share of tokens whose most likely token is unchanged."""
    known: Literal["assumed", "measured"]
    source: str


class LiveTrial(Frozen):
    """One candidate, deployed on a real server and replayed on a stretch of the workload."""

    candidate: Candidate
    outcome: Outcome
    """Measured on the stretch, or why nothing was."""
    verification: Verification | None
    """Measured beside promised; None where the server failed."""
    folder: str
    """Below the run folder: server log and raw records."""


class InputPin(Frozen):
    """One input, pinned by content."""

    what: str
    name: str
    digest: str


class RejectedCount(Frozen):
    """How many candidates fell for one reason, with an example."""

    rung: str
    reason: str
    count: int
    example: str


class Plan(Frozen):
    """The decision and its evidence."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    workload: str
    rate_scale: float
    model: ModelSpec
    hardware: HardwareSpec
    engine: EngineSpec
    objective: Objective
    profile: str
    """Which profile store entry supplied the operator times."""
    kernels: KernelSet | None = None
    """Tuned kernels that candidates of this plan may name."""
    intervals: tuple[Interval, ...] = ()
    """How far predictions of this kind were off on held-out measurements."""
    inputs: tuple[InputPin, ...]
    seed: int
    command: str | None = None
    """The `fwopt tune` line that leads to the same plan; TRACE stands for the file that `inputs` pins."""
    status: Literal["complete", "interrupted", "infeasible"]
    chosen: Entry | None
    """None when no candidate meets the objective; then `nearest_miss` says how close one came."""
    baseline: Entry | None
    baseline_kind: Literal["engine defaults", "given"]
    runners_up: tuple[Entry, ...]
    pareto: tuple[Entry, ...]
    unmeasured: tuple[Entry, ...]
    """Would have won, but rest on assumed operator times; need --allow-unmeasured."""
    nearest_miss: Entry | None
    rejected: tuple[RejectedCount, ...]
    evaluated: int
    schemes: tuple[SchemeVerdict, ...] = ()
    """Where quality was measured during the search: of which schemes, and why of no others."""
    live: tuple[LiveTrial, ...] = ()
    """Candidates measured on a real server, in the order of the simulation's preference, the baseline last."""
    chosen_by: Literal["simulation", "measurement"] = "simulation"
    notes: tuple[str, ...]
    """What a reader must know: assumptions, what was left out, what could change the answer."""


Entry.model_rebuild()
Plan.model_rebuild()
