"""`fwopt.yaml`: everything the command line takes, in the same grammar. Flags win over the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationError

from fwopt.errors import InputError, UnknownNameError
from fwopt.perf.store import newest_version
from fwopt.search.space import SpaceOverrides
from fwopt.spec.base import Frozen
from fwopt.spec.engine import EngineName, EngineSpec
from fwopt.spec.hardware import DeviceSpec, HardwareSpec
from fwopt.spec.objective import EvalsLimit, Goal, Objective, QualityLimit, Slo
from fwopt.spec.quality import QualitySettings

FILE = "fwopt.yaml"
COMMAND_LINE = "command line"
OLDEST_VLLM, NEWEST_VLLM = (0, 24), (0, 33)
"""Releases whose names for the flags that are searched are the same."""
DEFAULT_SLOS = ("ttft:p99<2s", "tpot:p95<50ms")
"""Used when neither goals nor limits are given: an interactive service."""
UNVERSIONED = "any"
"""Until a profile says which version it is."""


def _as_tuple(value: Any) -> Any:
    """A single value may be written without a list."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class ObjectiveSettings(Frozen):
    """Limits and goals as text, in the grammar of the command line."""

    slos: Texts = ()
    """For example `ttft:p99<2s`."""
    minimize: Texts = ()
    """cost, gpus, kl, or a latency such as `ttft:p99`."""
    maximize: Texts = ()
    """throughput, goodput or top1."""
    max_quality_drop: Texts = ()
    """`kl<0.01`, `top1>99%`, `evals:tools>=-0.5pp`."""


class MeasureQuality(Frozen):
    """Quality measured during the search; see docs/quality.md."""

    text: Texts = ()
    """Files of plain text."""
    workload: Texts = ()
    """Traces recorded with `fwopt record --with-text`."""
    weights: str | None = None
    """Folder or cached Hugging Face id; absent: the model's own."""
    max_tokens: Annotated[int, Field(ge=128)] = QualitySettings().max_tokens
    window: Annotated[int, Field(ge=32)] = QualitySettings().window


class Settings(Frozen):
    """`fwopt.yaml`; each key is also a flag of `fwopt tune`, which wins."""

    model: str | None = None
    """Hugging Face id, folder or config.json."""
    hardware: str | None = None
    """For example `h200:8`; absent: the GPUs of this machine."""
    price: Annotated[float, Field(ge=0)] | None = None
    """US dollars per GPU and hour; absent: the catalogue's."""
    engine: str | None = None
    """`vllm`, `llamacpp` or `fwopt`, with `==VERSION`; absent: vLLM, at the version fwopt plans for by default."""
    calibration: Path | None = None
    """File that `fwopt calibrate` wrote, laid on top of the profile's step times."""
    objective: ObjectiveSettings = ObjectiveSettings()
    speculation: Path | None = None
    """What `fwopt speculation` found (`results.json` or its folder): its drafters take part."""
    search: SpaceOverrides = SpaceOverrides()
    measure_quality: MeasureQuality | None = None
    """Absent: quality is as `fwopt quality` left it, else from literature."""
    rate_scale: PositiveFloat = 1.0
    """Multiple of the trace's arrival rate to plan for."""
    only_model: str | None = None
    """Of a trace with several models, plan for this one."""
    baseline: Path | None = None
    """vLLM config in use today; absent: the engine's defaults."""
    trials: PositiveInt = 160
    """Simulations before the capacity search."""
    timeout_s: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    allow_unmeasured: bool = False
    """Let a deployment be chosen whose times rest on stated efficiency priors."""


def load_settings(path: Path | None) -> Settings:
    """The named file, or `fwopt.yaml` of the working directory if there is one."""
    import yaml

    from fwopt.spec.strict_yaml import Loader

    if path is None:
        path = Path(FILE)
        if not path.exists():
            return Settings()
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: must be a mapping of settings, got {type(content).__name__}")
    return parse_settings(content or {}, str(path))


def parse_settings(content: dict[str, Any], where: str) -> Settings:
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise _unknown(first["loc"], where) from None
        rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        shown = repr(first["input"])[:60]
        raise InputError(f"{_key(first['loc'], where)}: {rule}, got {shown}") from None


def _key(place: tuple[int | str, ...], where: str) -> str:
    """A setting as its writer knows it: a flag, or a key of the file."""
    key = ".".join(str(part) for part in place)
    return f"--{key.replace('_', '-')}" if where == COMMAND_LINE else f"{where}: {key}"


def _unknown(place: tuple[int | str, ...], where: str) -> InputError:
    kinds: dict[str, type[Frozen]] = {
        "objective": ObjectiveSettings,
        "search": SpaceOverrides,
        "measure_quality": MeasureQuality,
    }
    section = kinds.get(str(place[0]), Settings) if len(place) > 1 else Settings
    key = ".".join(str(part) for part in place)
    return UnknownNameError(f"setting in {where}:", key, section.model_fields)


def parse_objective(settings: ObjectiveSettings, hardware: HardwareSpec) -> tuple[Objective, str | None]:
    """The objective, and what was assumed where nothing was said.

    Without a goal: cost where a price is known, GPUs otherwise. Without limits and goals: `DEFAULT_SLOS`.
    """
    goals = [Goal.parse("minimize", text) for text in settings.minimize]
    goals += [Goal.parse("maximize", text) for text in settings.maximize]
    slos = tuple(Slo.parse(text) for text in settings.slos)
    note = None
    if not goals:
        metric = "cost" if hardware.price is not None else "gpus"
        goals = [Goal.parse("minimize", metric)]
        note = f"no goal given: minimize {metric}"
        if not slos:
            slos = tuple(Slo.parse(text) for text in DEFAULT_SLOS)
            limits = ", ".join(map(str, slos))
            note = f"no objective given: minimize {metric} subject to {limits} (set with --slo, --minimize)"
    if len({str(g) for g in goals}) < len(goals):
        raise InputError(f"a goal is named twice: {', '.join(map(str, goals))}")
    by_evals = [text.strip().startswith("evals:") for text in settings.max_quality_drop]
    texts = list(zip(settings.max_quality_drop, by_evals, strict=True))
    drops = tuple(QualityLimit.parse(text) for text, evals in texts if not evals)
    evals_drops = tuple(EvalsLimit.parse(text) for text, evals in texts if evals)
    if len({drop.metric for drop in drops} | {f"evals:{drop.set}" for drop in evals_drops}) < len(texts):
        said = ", ".join(settings.max_quality_drop)
        raise InputError(f"--max-quality-drop limits a figure twice: {said}; keep the stricter")
    return Objective(slos=slos, goals=tuple(goals), max_quality_drop=drops, max_evals_drop=evals_drops), note


PLANNED: tuple[EngineName, ...] = ("vllm", "llamacpp", "fwopt")
"""Engines whose configuration can be written."""


def parse_engine(text: str) -> EngineSpec:
    """`vllm`, `vllm==0.24.0`, `llamacpp`, `fwopt`. Without a version: fwopt's default for vLLM, whatever was measured
    for the others (`resolve_engine`)."""
    name, equals, version = text.partition("==")
    if name not in PLANNED:
        raise InputError(
            f"engine '{text}': only {', '.join(PLANNED)} are planned for; write for example {EngineSpec().name}==0.24.0"
        )
    engine = next(known for known in PLANNED if known == name)
    if not equals:
        return EngineSpec() if engine == "vllm" else EngineSpec(name=engine, version=UNVERSIONED)
    if engine != "vllm":
        if not version:
            raise InputError(f"engine '{text}': names no version after '=='; leave both out to take what was measured")
        return EngineSpec(name=engine, version=version)
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", version)
    if found is None or not OLDEST_VLLM <= (int(found[1]), int(found[2])) <= NEWEST_VLLM:
        oldest, newest = ("{}.{}".format(*pair) for pair in (OLDEST_VLLM, NEWEST_VLLM))
        raise InputError(f"engine '{text}': flags are known for vllm {oldest} to {newest}; write vllm==0.24.0")
    return EngineSpec(version=version)


def resolve_engine(text: str | None, device: DeviceSpec, profiles: Path | None) -> EngineSpec:
    """As `parse_engine`; on this machine's processor, or for an engine without a default version, a version that was
    not named is the newest that was measured on the device."""
    engine = parse_engine(text or EngineSpec().name)
    if (text is not None and "==" in text) or (engine.version != UNVERSIONED and device.kind == "gpu"):
        return engine
    version = newest_version(device, engine.name, profiles)
    return engine if version is None else EngineSpec(name=engine.name, version=version)
