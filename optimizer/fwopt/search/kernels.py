"""Tuned kernels as an axis of the search. Only the reference engine runs them."""

from __future__ import annotations

from pathlib import Path

from fwopt.errors import InputError, RunFolderError
from fwopt.perf.cost import CostModel
from fwopt.perf.costs import Costs
from fwopt.perf.kernel_times import KernelTimes, find
from fwopt.perf.tuned import TunedCosts
from fwopt.search.derive import derive_space
from fwopt.search.measured import PROCESSOR_MEMORY_SHARE
from fwopt.search.space import SearchSpace, SpaceOverrides
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec, HardwareSpec
from fwopt.spec.kernels import KernelSet
from fwopt.spec.model import ModelSpec


def known_kernels(
    engine: EngineSpec, device: DeviceSpec, costs: Costs, profiles: Path | None, overrides: SpaceOverrides
) -> tuple[KernelTimes | None, tuple[str, ...]]:
    """Tuned times that candidates may name, and what a reader must know of them."""
    wanted = overrides.kernels or ()
    if engine.name != "fwopt":
        if wanted:
            raise InputError(f"search.kernels: {engine.name} runs kernels of its own; plan with --engine fwopt")
        return None, ()
    times, notes = find(device, profiles)
    if not isinstance(costs, CostModel):
        if "tuned" in wanted:
            raise InputError(
                "search.kernels: the profile has step times of the engine itself, which hold for its default kernels; "
                "leave `tuned` out, or name a store without them with --profiles"
            )
        unused = "tuned kernels do not take part: the engine's own step times were measured, with its default kernels"
        return None, (unused,) if times is not None else ()
    if "tuned" in wanted and times is None:
        why = notes[0] if notes else f"none were tuned on {device.name}; run `fwopt kernels tune` there"
        raise InputError(f"search.kernels: no tuned kernels hold here: {why}")
    if wanted == ("default",):
        return None, notes
    return times, (*notes, *((_described(times),) if times is not None else ()))


def _described(times: KernelTimes) -> str:
    kernels = times.kernels
    count = f"{len(kernels.choices)} choices of {', '.join(kernels.sources)}"
    how = "; on a processor they are the torch fallbacks" if all(c.variant == "torch" for c in kernels.choices) else ""
    return f"kernels {kernels.digest[:8]}: {count}, timed on {kernels.device_full_name} ({times.profile.name}){how}"


def reopened(kernels: KernelSet | None, device: DeviceSpec, profiles: Path | None, folder: Path) -> KernelTimes | None:
    """The times of a run's own set; refused where they are not here any more."""
    if kernels is None:
        return None
    times, notes = find(device, profiles)
    if times is None or times.kernels.digest != kernels.digest:
        now = "; ".join(notes) or ("none" if times is None else times.kernels.digest)
        raise RunFolderError(
            f"{folder}: the tuned kernels changed since ({kernels.digest} then, {now} now); start a new run"
        )
    return times


def with_kernels(costs: Costs, times: KernelTimes | None) -> Costs:
    return costs if times is None or not isinstance(costs, CostModel) else TunedCosts(costs, times)


def reference_space(
    model: ModelSpec,
    hardware: HardwareSpec,
    overrides: SpaceOverrides,
    kernels: KernelTimes | None,
    *,
    shares_prefixes: bool,
) -> SearchSpace:
    """What `fwopt serve` takes: tensor parallelism alone, no FP8 in blocks."""
    if any(dp > 1 for dp in overrides.dp or ()) or any(overrides.ep or ()):
        raise InputError("search.dp, search.ep: the reference engine shards by tensor parallelism only; leave them out")
    space = derive_space(
        model, hardware, overrides.model_copy(update={"dp": (1,), "ep": (False,)}), shares_prefixes=shares_prefixes
    )
    changes: dict[str, object] = {"kernels": _axis(overrides, kernels), "fp8_block_size": None}
    served = tuple(q for q in space.quantizations if not (q.kind == "fp8" and q.scale == "block"))
    if not served:
        raise InputError(f"{model.name}: the reference engine has no FP8 in blocks; plan for another engine")
    changes["quantizations"] = served
    if hardware.device.kind == "cpu" and overrides.gpu_memory_utilization is None:
        changes["gpu_memory_utilization"] = (PROCESSOR_MEMORY_SHARE,)
    return space.model_copy(update=changes)


def _axis(overrides: SpaceOverrides, kernels: KernelTimes | None) -> tuple[str | None, ...]:
    """The default kernels first."""
    named: dict[str, tuple[str | None, ...]] = {
        "default": (None,),
        "tuned": (kernels.kernels.digest,) if kernels is not None else (),
    }
    return tuple(digest for name in overrides.kernels or named for digest in named[name])
