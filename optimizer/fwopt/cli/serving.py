"""From the flags of `fwopt serve` to the engine's settings."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from fwopt.deploy.reference import KERNELS
from fwopt.engine.architecture import Architecture, read_architecture
from fwopt.engine.server.app import Served
from fwopt.engine.server.serve import served_model
from fwopt.engine.settings import DeviceKind, DType, LoadFormat, Operators, Settings, check, without_triton
from fwopt.errors import FwoptError, InputError
from fwopt.perf.capture import capture_sizes
from fwopt.spec.candidate import Candidate
from fwopt.spec.strict_yaml import Loader
from fwopt.targets.models import find_config
from fwopt_kernels.choice import Choice

_GRAPH_LIMIT = 512
"""Largest captured decode batch, as vLLM's default."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The flags; None: not given."""

    config: Path | None
    model: str | None
    served_model_name: str | None
    tokenizer: Path | None
    records: Path | None
    load_format: str
    device: str | None
    dtype: str
    threads: int | None
    kv_cache_gib: float | None
    max_model_len: int | None
    enforce_eager: bool
    operators: str | None


def prepare(asked: Asked) -> tuple[Settings, Served]:
    candidate, named = read_config(asked.config)
    model = asked.model or named
    if model is None:
        raise InputError("no model: give --model PATH, or a key `model` in the --config file")
    if candidate.parallelism.replicas > 1:
        print(
            f"fwopt: one replica of {candidate.parallelism.replicas}; start the others on ports of their own",
            file=sys.stderr,
        )
    place, architecture = _locate(model, asked.load_format)
    device = cast(DeviceKind, _one_of("--device", asked.device or _device(), ("cpu", "cuda")))
    batching, tp = candidate.batching, candidate.parallelism.tp
    graphs = device == "cuda" and not asked.enforce_eager
    dtype = cast(DType, _one_of("--dtype", asked.dtype, ("bf16", "fp32")))
    there = (device == "cuda" or candidate.kernels is not None) and without_triton(dtype) is None
    if candidate.kernels is not None and (asked.operators == "torch" or not there):
        why = without_triton(dtype) or "--operators torch"
        raise InputError(f"--config {asked.config}: names tuned kernels {candidate.kernels}, which do not run: {why}")
    operators = _one_of("--operators", asked.operators or ("triton" if there else "torch"), ("torch", "triton"))
    settings = Settings(
        model=place,
        architecture=architecture,
        candidate=candidate,
        max_model_len=asked.max_model_len or batching.max_model_len or architecture.max_position,
        load_format=cast(LoadFormat, _one_of("--load-format", asked.load_format, ("auto", "dummy"))),
        device=device,
        dtype=dtype,
        operators=cast(Operators, operators),
        choices=_choices(asked.config, candidate, device) if operators == "triton" else (),
        threads=asked.threads or max(1, len(os.sched_getaffinity(0)) // tp),
        kv_cache_bytes=None if asked.kv_cache_gib is None else int(asked.kv_cache_gib * 2**30),
        capture_sizes=tuple(int(s) for s in capture_sizes("fwopt", batching, _GRAPH_LIMIT)) if graphs else (),
        records=asked.records,
    )
    check(settings)
    return settings, served_model(settings, asked.served_model_name or model, asked.tokenizer or place)


def _choices(config: Path | None, candidate: Candidate, device: DeviceKind) -> tuple[Choice, ...]:
    """Of a config the set that it names and no other; without a config what was tuned on this device, or nothing, and
    said so."""
    from fwopt.engine.kernel_set import choices_of, read_set
    from fwopt.perf.kernel_times import find
    from fwopt.targets import load_hardware
    from fwopt.tuning.device import describe

    if candidate.kernels is not None:
        assert config is not None
        return choices_of(read_set(config.parent / KERNELS, candidate.kernels), describe(device))
    if config is not None or device == "cpu":
        return ()
    try:
        times, notes = find(load_hardware(None).device)
        if times is not None:
            return choices_of(times.kernels, describe(device))
        why = "; ".join(notes) or "none were tuned; run `fwopt kernels tune`"
    except FwoptError as error:
        why = str(error)
    print(f"fwopt: kernels run in their default variants: {why}", file=sys.stderr)
    return ()


def read_config(file: Path | None) -> tuple[Candidate, str | None]:
    """(candidate, model it names) of a YAML file: the candidate's own keys, and `model` beside them."""
    if file is None:
        return Candidate(), None
    try:
        values: Any = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: must be YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {file}: must be a mapping of a candidate's fields, got {type(values).__name__}")
    model = values.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise InputError(f"--config {file}: model: must be a name or a path, got {model!r}")
    try:
        candidate = Candidate.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"--config {file}: {where}: {first['msg']}, got {first['input']!r}"[:400]) from None
    return candidate, model


def _locate(model: str, load_format: str) -> tuple[Path, Architecture]:
    """Where the weights are: a GGUF file, a folder, or the local Hugging Face cache; the catalogue has shapes only."""
    if model.endswith(".gguf"):
        from fwopt.engine.gguf_file import read_gguf_architecture

        return Path(model), read_gguf_architecture(Path(model))
    file, _, source = find_config(model)
    if file.name != "config.json" and load_format != "dummy":
        raise InputError(
            f"{model}: no weights here ({source} has its shape only); give a folder, or --load-format dummy"
        )
    return file.parent if file.name == "config.json" else file, read_architecture(file)


def _device() -> DeviceKind:
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{flag} must be {' or '.join(known)}, got {value!r}")
    return value
