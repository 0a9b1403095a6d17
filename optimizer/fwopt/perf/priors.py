"""Efficiency priors (`profiles/priors.yaml`) and engine overheads (`profiles/overheads/<engine>.yaml`)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from fwopt.errors import InputError, UnmeasuredError
from fwopt.paths import data_folder
from fwopt.spec.base import Frozen
from fwopt.spec.reading import require_version

Factor = Annotated[float, Field(gt=0, le=1)]


class Elementwise(Frozen):
    """Bandwidth-bound operators between the measured ones."""

    bandwidth_efficiency: Factor
    bandwidth_efficiency_why: str
    kernel_floor_s: NonNegativeFloat
    kernel_floor_s_why: str


class Sampling(Frozen):
    """From logits to token ids."""

    logit_passes: PositiveFloat
    logit_passes_why: str
    kernels: PositiveInt
    kernels_why: str


class Routing(Frozen):
    """Which measured expert distribution resembles real routing."""

    routing: str
    routing_why: str


class Substitute(Frozen):
    """Another dtype's table whose utilisation is taken over."""

    table: str
    memory_factor: Factor
    compute_factor: Factor


class Substitutes(Frozen):
    """Dtypes without a table."""

    dense: dict[str, Substitute]
    dense_why: dict[str, str]
    moe: dict[str, Substitute]
    moe_why: dict[str, str]


class Priors(Frozen):
    """Everything that stands in for a measurement, with its reason."""

    schema_version: int
    version: str
    elementwise: Elementwise
    sampling: Sampling
    moe: Routing
    substitutes: Substitutes


class Overheads(Frozen):
    """Host-side times of one engine; see `StepGrid` for what each is added to."""

    schema_version: int
    version: str
    engine: str
    source: str
    """How the numbers were found."""
    step_cpu_s: NonNegativeFloat
    step_cpu_s_why: str
    sequence_cpu_s: NonNegativeFloat
    sequence_cpu_s_why: str
    serial_s: NonNegativeFloat
    serial_s_why: str
    sequence_serial_s: NonNegativeFloat
    sequence_serial_s_why: str
    prefill_step_s: NonNegativeFloat
    prefill_step_s_why: str
    special_prefill_step_s: NonNegativeFloat
    """Added to `prefill_step_s` for models with latent or linear attention."""
    special_prefill_step_s_why: str
    async_scheduling: bool = True
    async_scheduling_why: str = "a step is put together while the one before runs"
    prefill_in_graphs: bool
    prefill_in_graphs_why: str
    request_s: NonNegativeFloat
    request_s_why: str
    prompt_token_s: NonNegativeFloat
    prompt_token_s_why: str
    front_s: NonNegativeFloat = 0.0
    front_s_why: str = "not known"
    chunk_s: NonNegativeFloat = 0.0
    chunk_s_why: str = "not known"
    launch_s: NonNegativeFloat
    """Host time to launch one kernel outside a CUDA graph; eager steps cannot be faster than their launches."""
    launch_s_why: str
    kernel_gap_s: NonNegativeFloat
    """GPU idle time between two dependent kernels of a step, which separate timings do not see."""
    kernel_gap_s_why: str
    max_captured_tokens: PositiveInt
    """Largest batch captured as a CUDA graph by default."""
    max_captured_tokens_why: str


T = TypeVar("T", bound=Frozen)


def load_file(path: Path, kind: type[T]) -> T:
    """A versioned YAML data file; InputError names file and field."""
    import yaml

    try:
        content: Any = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if "schema_version" in kind.model_fields:
            require_version(path, content)
        loaded = kind.model_validate(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}, got {first['input']!r:.60}") from None
    return loaded


@functools.cache
def load_priors(folder: Path | None = None) -> Priors:
    """The priors in `folder` (default: the shipped ones)."""
    return load_file((folder or data_folder("profiles")) / "priors.yaml", Priors)


@functools.cache
def load_overheads(engine: str, folder: Path | None = None) -> Overheads:
    """Host overheads of one engine."""
    path = (folder or data_folder("profiles")) / "overheads" / f"{engine}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UnmeasuredError(f"no host overheads for engine {engine}; there are {known}")
    return load_file(path, Overheads)
