"""From what the user asked to a search that can run: everything resolved, checked and pinned first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from fwopt import __version__
from fwopt.errors import InputError, NothingFitsError, RunFolderError
from fwopt.paths import own_evals, own_quality
from fwopt.perf.calibration import load_calibration
from fwopt.perf.cost import CostModel
from fwopt.perf.costs import costs_of
from fwopt.perf.kernel_times import KernelTimes
from fwopt.perf.machine import load_machine, uncalibrated
from fwopt.perf.steps import StepProfile
from fwopt.perf.store import Profile, load_profile
from fwopt.search.defaults import default_baseline
from fwopt.search.derive import derive_space
from fwopt.search.evals import find_evals
from fwopt.search.evaluators import Screen
from fwopt.search.kernels import known_kernels, reference_space, reopened
from fwopt.search.measured import measured_space
from fwopt.search.notes import shortfall
from fwopt.search.quality import find_measured
from fwopt.search.roofline import RooflineScreen
from fwopt.search.run_folder import RunInputs
from fwopt.search.scoring import require_price
from fwopt.search.settings import Settings, parse_objective, resolve_engine
from fwopt.search.simulating import SimulatingEvaluator
from fwopt.search.space import ROUTERS, SearchSpace, SpaceOverrides
from fwopt.search.speculation import known_drafters, with_drafters
from fwopt.search.step_times import laid_over, told_of
from fwopt.search.traffic import Traffic, load_traffic
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.outcome import Rejected
from fwopt.spec.plan import InputPin
from fwopt.spec.quality import Measuring
from fwopt.targets import load_hardware, load_model


@dataclass(frozen=True, slots=True)
class Job:
    """A search ready to run."""

    inputs: RunInputs
    traffic: Traffic
    profile: Profile
    evaluator: SimulatingEvaluator
    baseline: Candidate | None
    """None: not even the engine's defaults start on this hardware."""
    notes: tuple[str, ...]

    @property
    def screens(self) -> tuple[Screen, ...]:
        """Cheapest first; those of quality come with the search. Where the engine's own steps were measured, the
        roofline has nothing to add."""
        inputs = self.inputs
        if isinstance(uncalibrated(self.evaluator.cost_model), StepProfile):
            return (self.evaluator,)
        bound = RooflineScreen(inputs.model, inputs.hardware.device, self.traffic.workload, inputs.objective)
        return self.evaluator, bound


def resolve_model(settings: Settings, traffic: Traffic) -> tuple[ModelSpec, str | None]:
    """The model to plan for, and a note where it is not the one that the trace was recorded with."""
    if settings.model is None and traffic.model is None:
        raise InputError("the trace names no model; add for example --model Qwen/Qwen3-8B (or `model:` in fwopt.yaml)")
    if settings.model is not None:
        model = load_model(settings.model)
        named = traffic.model
        if named is not None and named not in (settings.model, model.name):
            return model, f"the trace was recorded with {named}; its lengths are taken over for {model.name}"
        return model, None
    assert traffic.model is not None
    try:
        return load_model(traffic.model), None
    except InputError as error:
        raise InputError(f"the trace names its model '{traffic.model}': {error}; or add --model") from None


def prepare(
    trace: Path,
    settings: Settings,
    traffic: Traffic,
    model: ModelSpec,
    *,
    format: str | None = None,
    skip_bad: bool = False,
    profiles: Path | None = None,
    baseline: Candidate | None = None,
    notes: Sequence[str] = (),
    measuring: Measuring | None = None,
) -> Job:
    """Resolve a new run. `notes`: what the caller assumed on the way; `measuring`: what quality is measured on."""
    hardware = load_hardware(settings.hardware, settings.price)
    engine = resolve_engine(settings.engine, hardware.device, profiles)
    drafters = known_drafters(settings.speculation, model, engine)
    objective, assumed = parse_objective(settings.objective, hardware)
    require_price(objective, hardware)
    profile = load_profile(hardware.device, engine, profiles)
    costs = costs_of(model, hardware.device, engine, profile)
    kernels, said = known_kernels(engine, hardware.device, costs, profiles, settings.search)
    space = space_of(costs, hardware, settings.search, kernels, shares=traffic.workload.block_tokens > 0)
    space = with_drafters(space, drafters)
    if baseline is not None and baseline.parallelism.gpus > hardware.count:
        raise InputError(
            f"the baseline uses {baseline.parallelism.gpus} GPUs and {hardware.count} are at hand; "
            f"use for example --hardware {hardware.device.name}:{baseline.parallelism.gpus}"
        )
    machine = None
    if settings.calibration is not None:
        machine = load_machine(settings.calibration)
        machine.require(hardware, engine, settings.calibration)
    inputs = RunInputs(
        fwopt_version=__version__,
        trace=str(trace),
        trace_format=format,
        skip_bad=skip_bad,
        only_model=settings.only_model,
        rate_scale=settings.rate_scale,
        model=model,
        hardware=hardware,
        engine=engine,
        objective=objective,
        space=space,
        overrides=settings.search,
        baseline=baseline,
        seed=settings.seed,
        trials=settings.trials,
        allow_unmeasured=settings.allow_unmeasured,
        profiles=str(profiles) if profiles else None,
        notes=(*notes, *((assumed,) if assumed else ()), *said),
        machine=machine,
        quality=find_measured(model, own_quality()) if measuring is None else None,
        measuring=measuring,
        kernels=kernels.kernels if kernels is not None else None,
        drafters=drafters,
        evals=find_evals(model, own_evals()) if objective.max_evals_drop else None,
        pins=_pins(traffic, model, profile, engine, kernels),
        intervals=load_calibration(engine.name).intervals_for(model.is_moe) if profile.has("gemm") else (),
    )
    job = _assemble(inputs, traffic, profile, kernels)
    require_fit(space, job.evaluator, hardware, model)
    return job


def space_of(
    costs: CostModel | StepProfile,
    hardware: HardwareSpec,
    overrides: SpaceOverrides,
    kernels: KernelTimes | None,
    *,
    shares: bool,
) -> SearchSpace:
    """What may vary: whatever the engine accepts where operators are known, what was measured where its steps are."""
    if not shares and "cache_aware" in (overrides.router or ()):
        raise InputError(
            "search.router cache_aware follows prefixes, and this trace does not record which prompts share them; "
            f"take of {', '.join(ROUTERS)}"
        )
    if isinstance(costs, StepProfile):
        return measured_space(costs, hardware, overrides, shares_prefixes=shares)
    if costs.engine.name == "fwopt":
        return reference_space(costs.model, hardware, overrides, kernels, shares_prefixes=shares)
    return derive_space(costs.model, hardware, overrides, shares_prefixes=shares)


def require_fit(space: SearchSpace, memory: Screen, hardware: HardwareSpec, model: ModelSpec) -> None:
    """Refuse, before any work, a model that no layout of the search can hold: names the nearest and what it lacks."""
    nearest: tuple[float, Candidate, Rejected] | None = None
    least = min(space.max_num_seqs), min(space.max_num_batched_tokens), max(space.gpu_memory_utilization), True
    for (quantization, layout), kv in product(space.structures(), space.kv_dtypes):
        batching = space.batching(*least, kv)
        candidate = Candidate(quantization=quantization, kv_dtype=kv, parallelism=layout, batching=batching)
        rejected = memory.check(candidate)
        if rejected is None:
            return
        excess = rejected.need / rejected.have if rejected.need and rejected.have else math.inf
        if nearest is None or excess < nearest[0]:
            nearest = excess, candidate, rejected
    assert nearest is not None
    excess, candidate, rejected = nearest
    amounts = shortfall(rejected)
    advice = "use a larger GPU or a smaller model"
    if math.isfinite(excess):
        count = 2 ** math.ceil(math.log2(candidate.parallelism.gpus_per_replica * excess))
        advice = f"use for example --hardware {hardware.device.name}:{count}"
    raise NothingFitsError(
        f"{model.name} fits on no layout of {hardware.count} x {hardware.device.name}; nearest "
        f"{candidate.label}: {rejected.reason}{amounts}; {advice}"
    )


def reopen(
    inputs: RunInputs, *, trace: Path | None, profiles: Path | None, folder: Path, same_traffic: bool = True
) -> Job:
    """Rebuild the job of an existing run; whatever changed since by content is named and refused, the traffic unless
    it is meant to be another."""
    where = trace or Path(inputs.trace)
    if not where.exists():
        raise RunFolderError(f"{folder}: its trace {where} is not here (a path as given); name the trace too")
    traffic = load_traffic(
        where,
        format=inputs.trace_format,
        skip_bad=inputs.skip_bad,
        only_model=inputs.only_model,
        rate_scale=inputs.rate_scale,
    )
    home = profiles or (Path(inputs.profiles) if inputs.profiles else None)
    profile = load_profile(inputs.hardware.device, inputs.engine, home)
    kernels = reopened(inputs.kernels, inputs.hardware.device, home, folder)
    for was, now in zip(inputs.pins, _pins(traffic, inputs.model, profile, inputs.engine, kernels), strict=True):
        if was.digest != now.digest and (same_traffic or was.what != "workload"):
            raise RunFolderError(
                f"{folder}: the {was.what} changed since ({was.digest} then, {now.digest} now); start a new run"
            )
    return _assemble(inputs, traffic, profile, kernels)


def _pins(
    traffic: Traffic, model: ModelSpec, profile: Profile, engine: EngineSpec, kernels: KernelTimes | None
) -> tuple[InputPin, ...]:
    workload = traffic.workload
    pins = (
        InputPin(what="workload", name=workload.name, digest=workload.digest),
        InputPin(what="model config", name=model.name, digest=model.config_digest),
        InputPin(what="profile", name=profile.name, digest=profile.digest),
        InputPin(what="calibration", name=engine.name, digest=load_calibration(engine.name).content_hash()),
    )
    if kernels is None:
        return pins
    return (*pins, InputPin(what="kernels", name=kernels.profile.name, digest=kernels.profile.digest))


def _assemble(inputs: RunInputs, traffic: Traffic, profile: Profile, kernels: KernelTimes | None) -> Job:
    plain = costs_of(inputs.model, inputs.hardware.device, inputs.engine, profile)
    cost = laid_over(plain, profile, kernels=kernels, drafters=inputs.drafters, machine=inputs.machine)
    evaluator = SimulatingEvaluator(traffic.workload, cost, inputs.hardware, inputs.objective, drafters=inputs.drafters)
    baseline = inputs.baseline or default_baseline(
        inputs.space, inputs.model, inputs.hardware.device, evaluator, inputs.engine.name
    )
    notes = [*traffic.notes, *inputs.notes, *told_of(profile, cost)]
    if inputs.machine is not None:
        notes.append(f"step times calibrated by {len(inputs.machine.fitted_on)} live replays (--calibration)")
    if baseline is None:
        notes.append(f"{inputs.engine.name}'s own defaults do not start on this hardware: there is no baseline")
    elif inputs.baseline is not None and (rejected := evaluator.check(baseline)) is not None:
        notes.append(f"the given baseline would not start: {rejected.reason}")
    return Job(inputs, traffic, profile, evaluator, baseline, tuple(notes))
