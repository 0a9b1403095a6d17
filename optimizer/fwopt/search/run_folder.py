"""One run, one folder: `inputs.json` (resolved, pinned), `trials.jsonl` (the truth), `plan.json` (the answer)."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from fwopt.errors import RunFolderError
from fwopt.perf.machine import MachineCalibration
from fwopt.search.log import TrialLog
from fwopt.search.space import SearchSpace, SpaceOverrides
from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.evals import MeasuredEvals
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.kernels import KernelSet
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import Objective
from fwopt.spec.plan import InputPin, Plan
from fwopt.spec.provenance import Interval
from fwopt.spec.quality import MeasuredQuality, Measuring
from fwopt.spec.reading import require_version
from fwopt.spec.speculation import KnownDrafters

T = TypeVar("T", bound=Frozen)


class RunInputs(Frozen):
    """Everything a run depends on: equal inputs search the same thing the same way. Only `trials` may grow."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    trace: str
    """Path as given."""
    trace_format: str | None
    skip_bad: bool
    only_model: str | None
    rate_scale: float
    model: ModelSpec
    hardware: HardwareSpec
    engine: EngineSpec
    objective: Objective
    space: SearchSpace
    overrides: SpaceOverrides = SpaceOverrides()
    """What of the space the user's `search:` section asked for."""
    baseline: Candidate | None
    """None: the engine's defaults."""
    seed: int
    trials: int
    allow_unmeasured: bool
    profiles: str | None
    """Folder of profiles given by the user."""
    notes: tuple[str, ...] = ()
    """What was assumed while resolving, for the plan."""
    machine: MachineCalibration | None = None
    """What live replays taught of this machine, given with --calibration."""
    quality: MeasuredQuality | None = None
    """What `fwopt quality` found of this model; None: literature."""
    kernels: KernelSet | None = None
    """Tuned kernels that candidates may name."""
    drafters: KnownDrafters | None = None
    """What may guess tokens ahead, given with --speculation."""
    measuring: Measuring | None = None
    """Quality is measured during the search; then `quality` is None."""
    evals: MeasuredEvals | None = None
    """What `fwopt evals` found of this model; None: nothing."""
    pins: tuple[InputPin, ...]
    intervals: tuple[Interval, ...] = ()
    """Of the calibration in use, for this kind of model."""
    """Workload, model config, profile: by content."""


class RunFolder:
    """Creates, reopens and fills the folder of a run. Files appear whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def inputs_path(self) -> Path:
        return self.path / "inputs.json"

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def trials_path(self) -> Path:
        return self.path / "trials.jsonl"

    @classmethod
    def check_free(cls, path: Path, *, force: bool, parent: bool = False) -> None:
        """Refuse a folder that holds something else or cannot be written, before any work. `parent`: the run will
        get a new folder of its own inside."""
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file; choose another folder with --out")
        if not parent and path.exists() and any(path.iterdir()):
            ours = (path / "inputs.json").exists()
            if not force or not ours:
                ways = "--resume it, replace it with --force" if ours else "it holds no run"
                raise RunFolderError(f"{path} is not empty: {ways}, or choose another folder with --out")
        home = path.absolute()
        while not home.exists():
            home = home.parent
        if not home.is_dir():
            raise RunFolderError(f"{home} is a file; choose another folder with --out")
        if not os.access(home, os.W_OK | os.X_OK):
            raise RunFolderError(f"{home} is not writable; choose another folder with --out")

    @classmethod
    def create(cls, path: Path, inputs: RunInputs, *, force: bool = False) -> Self:
        cls.check_free(path, force=force)
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for stale in (
                folder.plan_path,
                folder.trials_path,
                path / "quality.json",
                path / "report.html",
                path / "report.md",
            ):
                stale.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error.strerror}; choose another with --out") from None
        folder._write(folder.inputs_path, inputs)
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple[Self, RunInputs]:
        """An existing run, to be resumed."""
        folder = cls(path)
        inputs = read_inputs(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise RunFolderError(f"{path} is not writable, so the run there cannot be resumed")
        return folder, inputs

    def log(self) -> TrialLog:
        return TrialLog(self.trials_path).load()

    def write_plan(self, plan: Plan) -> None:
        self._write(self.plan_path, plan)

    def write_inputs(self, inputs: RunInputs) -> None:
        self._write(self.inputs_path, inputs)

    def _write(self, path: Path, value: Frozen) -> None:
        text = value.model_dump_json(indent=2) + "\n"
        try:
            handle, name = tempfile.mkstemp(dir=self.path, prefix=f".{path.name}.")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error.strerror}") from None


def read_inputs(folder: Path) -> RunInputs:
    """`inputs.json` of a run folder."""
    path = folder / "inputs.json"
    if not path.is_file():
        raise RunFolderError(f"{folder} holds no run (no inputs.json); name a folder that `fwopt tune` wrote")
    return _read(path, RunInputs)


def read_plan(path: Path) -> Plan:
    """`plan.json` of a run folder, or the file itself."""
    file = path / "plan.json" if path.is_dir() else path
    if not file.is_file():
        raise RunFolderError(f"{file} does not exist; name a folder in which `fwopt tune` has finished")
    return _read(file, Plan)


def _read(path: Path, kind: type[T]) -> T:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from None
    require_version(path, content, RunFolderError)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunFolderError(f"{path}: {where}: {first['msg']}") from None
