"""Where a candidate's step times come from: a profile's own, with all that was measured besides laid over them."""

from __future__ import annotations

from fwopt.perf.costs import Costs, costs_of
from fwopt.perf.kernel_times import KernelTimes
from fwopt.perf.machine import CalibratedCosts, MachineCalibration, uncalibrated
from fwopt.perf.steps import StepProfile
from fwopt.perf.store import Profile
from fwopt.search.kernels import with_kernels
from fwopt.search.speculation import speculating
from fwopt.spec.speculation import KnownDrafters


def laid_over(
    costs: Costs,
    profile: Profile,
    *,
    kernels: KernelTimes | None,
    drafters: KnownDrafters | None,
    machine: MachineCalibration | None = None,
) -> Costs:
    """`costs` of `profile` with tuned kernels, drafters and what live replays taught of this machine."""
    device, engine = costs.device, costs.engine
    costs = with_kernels(costs, kernels)
    costs = speculating(costs, drafters, lambda draft: costs_of(draft, device, engine, profile))
    return costs if machine is None else CalibratedCosts(costs, machine)


def told_of(profile: Profile, costs: Costs) -> list[str]:
    """What a reader must know of the profile: another version's, or parts that nobody measured."""
    told = [profile.note] if profile.note else []
    steps = uncalibrated(costs)
    if isinstance(steps, StepProfile) and steps.left_open:
        told.append(steps.left_open)
    return told
