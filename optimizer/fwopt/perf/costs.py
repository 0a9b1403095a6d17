"""Where a candidate's step times come from: operators added up, or the engine's own steps."""

from __future__ import annotations

from typing import Protocol

from fwopt.errors import UnmeasuredError
from fwopt.perf.cost import CostModel
from fwopt.perf.grid import StepGrid
from fwopt.perf.steps import TABLE, StepProfile, measured_keys
from fwopt.perf.store import Profile
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec


class Costs(Protocol):
    """Step times of one model on one device type under one engine. Safe to call from several threads."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def device(self) -> DeviceSpec: ...

    @property
    def engine(self) -> EngineSpec: ...

    def grid(self, candidate: Candidate) -> StepGrid:
        """Step times of `candidate`; UnmeasuredError where nothing measured or stated covers it."""
        ...


class CostsOver:
    """Others' step times with something on top: a base that says whose they are."""

    __slots__ = ()
    plain: Costs

    @property
    def model(self) -> ModelSpec:
        return self.plain.model

    @property
    def device(self) -> DeviceSpec:
        return self.plain.device

    @property
    def engine(self) -> EngineSpec:
        return self.plain.engine


def costs_of(model: ModelSpec, device: DeviceSpec, engine: EngineSpec, profile: Profile) -> CostModel | StepProfile:
    """The engine's own step times where the profile has them of this model; operators otherwise."""
    if measured_keys(profile, model):
        return StepProfile(model, device, engine, profile)
    if profile.has(TABLE) and not profile.has("gemm"):
        raise UnmeasuredError(
            f"profile {profile.name} has step times of other models and no operators; "
            f"measure this one with `fwopt profile --engine {engine.name} --model {model.name}`"
        )
    return CostModel(model, device, engine, profile)
