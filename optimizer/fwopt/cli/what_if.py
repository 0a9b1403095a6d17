"""One given deployment, resolved and ready to be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fwopt.errors import InputError, NothingFitsError, UnknownNameError

if TYPE_CHECKING:
    from fwopt.perf.memory import KvCapacity
    from fwopt.search.simulating import SimulatingEvaluator
    from fwopt.sim import SimResult
    from fwopt.spec.candidate import Candidate
    from fwopt.spec.outcome import Evaluation


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A candidate on a workload, with everything that had to be assumed said in `notes`."""

    candidate: Candidate
    evaluator: SimulatingEvaluator
    fit: KvCapacity
    notes: tuple[str, ...]

    def run(self, *, count: bool = False) -> tuple[SimResult, Evaluation]:
        """`count`: the steps by their shapes, too."""
        result = self.evaluator.replay(self.candidate, self.fit, 1.0, count=count)
        return result, self.evaluator.judge(self.candidate, result, self.fit.blocks, 1.0)


def prepare_what_if(
    trace: Path,
    *,
    config: Path | None,
    model: str | None,
    hardware: str | None,
    replicas: int | None,
    router: str | None,
    rate_scale: float,
    slos: Sequence[str],
    price: float | None,
    format: str | None,
    skip_bad: bool,
    only_model: str | None,
    profiles: Path | None,
    without: str | None = None,
    engine: str | None = None,
    candidate: Candidate | None = None,
    speculation: Path | None = None,
) -> WhatIf:
    """Resolve trace, model, hardware and candidate; refuse what would not start, with need and have.

    `candidate`: given instead of `config`; `speculation`: what its drafter achieves."""
    from fwopt.deploy import vllm_config
    from fwopt.perf.calibration import load_calibration
    from fwopt.perf.cost import CostModel
    from fwopt.perf.costs import Costs, costs_of
    from fwopt.perf.effects import calibration_without, model_without, parse_effects, priors_without
    from fwopt.perf.kv_layout import attention_block
    from fwopt.perf.store import load_profile
    from fwopt.search.defaults import engine_defaults
    from fwopt.search.job import resolve_model
    from fwopt.search.kernels import known_kernels
    from fwopt.search.settings import Settings, resolve_engine
    from fwopt.search.simulating import SimulatingEvaluator
    from fwopt.search.space import SpaceOverrides
    from fwopt.search.speculation import known_drafters
    from fwopt.search.step_times import laid_over, told_of
    from fwopt.search.traffic import load_traffic
    from fwopt.spec.candidate import Candidate, Parallelism
    from fwopt.spec.objective import Objective, Slo
    from fwopt.spec.outcome import Rejected
    from fwopt.spec.router import RouterPolicy
    from fwopt.targets import load_hardware
    from fwopt.targets.quantization import native_quantization

    objective = Objective(slos=tuple(Slo.parse(text) for text in slos))
    if router is not None and router not in get_args(RouterPolicy):
        raise UnknownNameError("router policy", router, get_args(RouterPolicy))
    gpus = load_hardware(hardware, price)
    chosen_engine = resolve_engine(engine, gpus.device, profiles)
    read = None
    if config is not None:
        told = chosen_engine if chosen_engine.name == "vllm" else None
        read = vllm_config.read(config, replicas=replicas, engine=told, defaults=engine_defaults(gpus.device))
    traffic = load_traffic(trace, format=format, skip_bad=skip_bad, only_model=only_model, rate_scale=rate_scale)
    settings = Settings(model=model or (read.model if read is not None else None))
    off = parse_effects(without)
    spec, recorded = resolve_model(settings, traffic)
    spec = model_without(spec, off)
    if read is not None:
        candidate = read.for_model(spec)
    elif candidate is None:
        asked = spec.checkpoint_kv_dtype if chosen_engine.name == "vllm" else None
        batching = engine_defaults(gpus.device, engine=chosen_engine.name)
        if asked is not None and (block := attention_block(spec, asked)) is not None:
            batching = batching.model_copy(update={"block_size": block})
        candidate = Candidate(
            quantization=native_quantization(spec),
            kv_dtype=asked or "bf16",
            parallelism=Parallelism(replicas=replicas or 1),
            batching=batching,
        )
    if router is not None:
        candidate = candidate.model_copy(update={"router": router})
    if candidate.parallelism.gpus > gpus.count:
        raise InputError(
            f"the deployment needs {candidate.parallelism.gpus} GPUs, --hardware gives {gpus.count}; "
            f"for example --hardware {gpus.device.name}:{candidate.parallelism.gpus}"
        )
    profile = load_profile(gpus.device, chosen_engine, profiles)
    costs: Costs = costs_of(spec, gpus.device, chosen_engine, profile)
    if isinstance(costs, CostModel):
        costs = CostModel(
            spec, gpus.device, chosen_engine, profile, priors=priors_without(off),
            calibration=calibration_without(load_calibration(chosen_engine.name), off),
            eager_all_reduce="eager-all-reduce" not in off,
        )  # fmt: skip
    drafters = known_drafters(speculation, spec, chosen_engine)
    kernels, _ = known_kernels(chosen_engine, gpus.device, costs, profiles, SpaceOverrides())
    costs = laid_over(costs, profile, kernels=kernels, drafters=drafters)
    evaluator = SimulatingEvaluator(traffic.workload, costs, gpus, objective, off, drafters)
    fit = evaluator.capacity(candidate)
    if isinstance(fit, Rejected):
        amounts = f": needs {fit.need:,.0f}, has {fit.have:,.0f} {fit.unit}" if fit.need and fit.have else ""
        raise NothingFitsError(f"{spec.name} does not start like this: {fit.reason}{amounts}")
    notes = [*traffic.notes, *([recorded] if recorded else []), *told_of(profile, costs)]
    notes += read.notes if read is not None else ()
    notes += [f"left out: {', '.join(sorted(off))}"] if off else []
    return WhatIf(candidate, evaluator, fit, tuple(notes))
