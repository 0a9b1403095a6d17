"""What live replays on one machine taught: few factors on top of a profile's step times (`fwopt calibrate`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveFloat

from fwopt.errors import InputError
from fwopt.perf.costs import Costs, CostsOver
from fwopt.perf.grid import StepGrid
from fwopt.perf.speculating import SpeculatingCosts
from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import HardwareSpec


class MachineCalibration(Frozen):
    """Fitted to measured runs of one engine on one device type."""

    schema_version: int = SCHEMA_VERSION
    hardware: str
    """Catalogue name of the device."""
    engine: EngineSpec
    decode: PositiveFloat
    """Measured over promised time of steps that stream weights."""
    prefill: PositiveFloat
    """The same where arithmetic counts."""
    request_s: float
    """Added to the delay of every request outside the engine loop; below zero: the profile's was too long."""
    fitted_on: tuple[str, ...]
    """One line a run: workload, model, candidate, when."""
    error_before: dict[str, float]
    """Metric -> mean absolute relative error over the runs, before the fit."""
    error_after: dict[str, float]
    """The same with it: a fit, not a test."""

    def apply(self, grid: StepGrid) -> StepGrid:
        return grid.scaled(self.decode, self.prefill, self.request_s)

    def require(self, hardware: HardwareSpec, engine: EngineSpec, path: Path) -> None:
        """Refuse factors of another device or engine; another version of the engine is the user's choice."""
        if self.hardware != hardware.device.name:
            raise InputError(
                f"{path}: was fitted on {self.hardware}, the plan is for {hardware.device.name}; "
                "calibrate on that hardware, or leave --calibration out"
            )
        if self.engine.name != engine.name:
            raise InputError(
                f"{path}: was fitted with {self.engine.name}, the plan is for {engine.name}; "
                "calibrate with that engine, or leave --calibration out"
            )


@dataclass(frozen=True, slots=True)
class CalibratedCosts(CostsOver):
    """Step times of a profile, with what this machine taught."""

    plain: Costs
    machine: MachineCalibration

    def grid(self, candidate: Candidate) -> StepGrid:
        return self.machine.apply(self.plain.grid(candidate))


def uncalibrated(costs: Costs) -> Costs:
    """The profile's own step times, of the model alone."""
    costs = costs.plain if isinstance(costs, CalibratedCosts) else costs
    return costs.plain if isinstance(costs, SpeculatingCosts) else costs


def load_machine(path: Path) -> MachineCalibration:
    """A file that `fwopt calibrate` wrote."""
    import yaml
    from pydantic import ValidationError

    advice = "name a file that `fwopt calibrate` wrote"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return MachineCalibration.model_validate(content)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; name a file that `fwopt calibrate` wrote"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; {advice}") from None
