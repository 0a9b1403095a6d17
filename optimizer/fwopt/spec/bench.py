"""`SUITE.yaml`: what `fwopt bench` measures, how the arms differ, and by which rules they are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fwopt.spec.base import Frozen
from fwopt.spec.engine import EngineName
from fwopt.spec.objective import parse_statistic

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(gt=0, lt=1)]
ArmName = Literal["base", "head"]
ARMS: tuple[ArmName, ArmName] = ("base", "head")


class Metric(Frozen):
    """One figure that is compared: a statistic over samples, pooled over all runs of an arm."""

    series: Name
    """Samples of this name: `wall` or `cpu` of a timed command, a key of its JSON, `ttft`, `tpot`, `e2e`,
    `throughput`."""
    statistic: str = "p50"
    """`mean`, or a quantile such as `p99`."""
    unit: str = "s"
    better: Literal["lower", "higher"] = "lower"
    min_effect: Annotated[float, Field(gt=0, lt=10)] | None = None
    """Relative change that matters, for this metric; None: the rules'."""

    @property
    def name(self) -> str:
        return f"{self.series}:{self.statistic}"

    @property
    def quantile(self) -> float | Literal["mean"]:
        return parse_statistic(self.statistic)

    @model_validator(mode="after")
    def _known_statistic(self) -> Self:
        parse_statistic(self.statistic)
        return self


class Arm(Frozen):
    """One of the two builds: what differs between them. Fields that a bench has no use for are left alone."""

    cwd: Path | None = None
    """Working directory of commands; None: the suite's folder."""
    env: dict[str, str] = Field(default_factory=dict)
    """Added to the environment of commands and kernels."""
    python: Path | None = None
    """Interpreter that kernels run in; None: this one."""
    url: str | None = None
    """Live: a server that runs."""
    run: Path | None = None
    """Live or simulated: run folder whose chosen deployment is served or simulated."""
    config: Path | None = None
    """Simulated: vLLM configuration."""
    version: str | None = None
    """Of the engine or build, for the record."""


class _Bench(Frozen):
    name: Name
    metrics: tuple[Metric, ...] = ()
    """Empty: those of the kind (docs/bench.md)."""


class CommandBench(_Bench):
    """A command of the user's: timed, or printing its samples as JSON."""

    kind: Literal["command"] = "command"
    command: Annotated[str | tuple[str, ...], Field(min_length=1)]
    """Split as a shell would, but run without one. `{arm}` becomes `base` or `head`."""
    output: Literal["wall", "json"] = "wall"
    """wall: the time from start to end is the sample, `cpu` that of processors, children included. json: the last line
    of standard output is `{"samples": {"series": [...]}, "parts": {"name": seconds}, "lost": 0}`."""
    repeat: PositiveInt = 3
    """Times that one run calls the command."""
    timeout_s: PositiveFloat = 600.0


class SimulatedBench(_Bench):
    """A trace through the simulator: no noise, so one run says all."""

    kind: Literal["simulated"] = "simulated"
    trace: Path | None = None
    """Recorded requests; None: those of the run folder."""
    run: Path | None = None
    """Run folder whose chosen deployment is simulated; an arm may name another."""
    config: Path | None = None
    """vLLM configuration; an arm may name another."""
    model: str | None = None
    hardware: str | None = None
    engine: str | None = None
    replicas: PositiveInt | None = None
    rate_scale: PositiveFloat = 1.0


class KernelsBench(_Bench):
    """One of fwopt's operators at one shape, in a process of the arm's own."""

    kind: Literal["kernels"] = "kernels"
    operator: str
    format: str
    shape: dict[str, PositiveInt]
    device: Literal["cuda", "cpu"] = "cpu"
    """On a processor the torch fallback is timed."""
    repeat: PositiveInt = 20
    """Samples of one run; each is a median over at least five rounds."""
    timeout_s: PositiveFloat = 600.0


class LiveBench(_Bench):
    """A trace replayed on a server: the arm's `url`, or one started from the arm's `run` folder."""

    kind: Literal["live"] = "live"
    trace: Path
    requests: PositiveInt | None = None
    """Only the first so many."""
    concurrency: PositiveInt | None = None
    """So many requests in flight; None: at the recorded times."""
    rate_scale: PositiveFloat = 1.0
    cache: Literal["cold", "warm", "as is"] = "cold"
    model: str | None = None
    """Weights to start a server with, or the name a running one goes by."""
    engine: EngineName | None = None
    """Of a running server; None: what it says."""
    tokenizer: Path | None = None
    """Prompts are made of its tokens; needed where the server takes text only."""
    ready_timeout_s: PositiveFloat = 900.0


Bench = Annotated[CommandBench | SimulatedBench | KernelsBench | LiveBench, Field(discriminator="kind")]


class Rules(Frozen):
    """How arms are judged (docs/bench.md)."""

    alpha: Share = 0.005
    """Chance of at least one false `fail` in a whole suite of equal arms, over all metrics and looks."""
    alpha_pass: Share = 0.05
    """Chance that a metric passes although it is worse by the minimum effect."""
    min_effect: Annotated[float, Field(gt=0, lt=10)] | None = None
    """Relative change that matters; None: what A/A runs here allow to be told, within `floor` and `ceiling`."""
    floor: PositiveFloat = 0.01
    """Least minimum effect that A/A runs may give."""
    ceiling: PositiveFloat = 0.03
    """Largest one they may give: on a machine too noisy for it the verdict is inconclusive, never a generous pass."""
    exact_effect: PositiveFloat = 0.001
    """Minimum effect of metrics without noise (simulated)."""
    aa_blocks: Annotated[int, Field(ge=6, le=1000)] = 10
    """Blocks of A/A runs before the comparison, where the minimum effect is not stated."""
    min_blocks: Annotated[int, Field(ge=5, le=10_000)] = 6
    """Blocks (A B B A) before the first look."""
    max_blocks: Annotated[int, Field(ge=5, le=10_000)] = 100
    """Blocks at the last look."""
    budget_s: PositiveFloat = 1800.0
    """Time after which no new block begins."""
    warm_up_runs: Annotated[int, Field(ge=0, le=1000)] = 1
    """Runs of each arm before anything counts."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 400
    """Halves of the blocks that are drawn; only their spread is used, which so many give within 4 %."""
    max_age_days: PositiveFloat = 180.0
    """An older baseline is stale."""
    history_sessions: Annotated[int, Field(ge=3, le=1000)] = 5
    """Sessions of a baseline that it takes to judge a result that was measured in another one."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.max_blocks < self.min_blocks:
            raise ValueError(f"max_blocks must be at least min_blocks ({self.min_blocks}), got {self.max_blocks}")
        if self.ceiling < self.floor:
            raise ValueError(f"ceiling must be at least floor ({self.floor:g}), got {self.ceiling:g}")
        return self


class Suite(Frozen):
    """One file that a team keeps beside its code."""

    name: Name
    benches: Annotated[tuple[Bench, ...], Field(min_length=1)]
    arms: dict[ArmName, Arm] = Field(default_factory=dict)
    """`base` and `head`; without `base` one arm is measured, to be compared with a stored baseline."""
    rules: Rules = Rules()
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order of arms; halves of the blocks are drawn with one of their own."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [bench.name for bench in self.benches]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"every bench needs a name of its own, got '{twice}' twice")
        return self
