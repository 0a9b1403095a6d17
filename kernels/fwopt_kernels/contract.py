"""What every operator states of itself, so that compiling, checking and tuning know one shape of operator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

NUM_WARPS, NUM_STAGES = "num_warps", "num_stages"
"""The two axes that a space may have besides its kernel's own constants."""


@dataclass(frozen=True, order=True)
class Variant:
    """One way to compile an operator: the kernel's compile-time constants, warps per program, pipeline stages."""

    constants: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    @property
    def id(self) -> str:
        """Short and stable: equal variants, and only those, share it."""
        if self.num_warps == 0:
            return "torch"
        parts = [f"{name.lower()}{value}" for name, value in self.constants]
        return "-".join([*parts, f"w{self.num_warps}", f"s{self.num_stages}"])

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton's compiler is told, when a kernel is launched and ahead of time alike."""
        return {NUM_WARPS: self.num_warps, NUM_STAGES: self.num_stages, "enable_fp_fusion": True}

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]


def variant(num_warps: int, num_stages: int = 1, **constants: int) -> Variant:
    """A variant whose constants are in alphabetical order, whatever order they are given in."""
    return Variant(tuple(sorted(constants.items())), num_warps, num_stages)


FALLBACK = Variant((), 0, 0)
"""No kernel: the operator's torch fallback, which every typed wrapper and every `run` takes as it takes a variant."""

PLAIN = variant(4).options
"""Of kernels that no variant changes."""


def _everything(_: Variant) -> bool:
    return True


def _everywhere(_: Variant, __: Mapping[str, int]) -> bool:
    return True


@dataclass(frozen=True)
class Large:
    """A default of its own, from so much of what decides on."""

    rows: Callable[[Mapping[str, int]], float]
    """Shape -> what decides: rows that share weights, keys that few queries read."""
    least: int
    """From so many on."""
    variant: Variant


@dataclass(frozen=True)
class Space:
    """The variants of an operator in one format: the product of the axes where `allowed` holds."""

    axes: Mapping[str, tuple[int, ...]]
    """Without `NUM_STAGES`, one stage: Triton pipelines only loops that feed a matrix product, and compiles others to
    the same PTX whatever the number."""
    default: Variant
    allowed: Callable[[Variant], bool] = _everything
    large: Large | None = None
    """The default of calls in which arithmetic counts, not memory."""
    long: Large | None = None
    """The default of calls of few programs that would each take long. It goes before `large`."""
    suits: Callable[[Variant, Mapping[str, int]], bool] = _everywhere
    """Whether a variant may be worth its memory at a shape: elsewhere it is not timed, and the default runs."""

    def default_for(self, shape: Mapping[str, int]) -> Variant:
        """What runs at that shape where nothing was tuned."""
        own = (other for other in (self.long, self.large) if other is not None)
        return next((other.variant for other in own if other.rows(shape) >= other.least), self.default)

    @property
    def defaults(self) -> tuple[Variant, ...]:
        return (self.default, *(other.variant for other in (self.large, self.long) if other is not None))

    def variants(self) -> tuple[Variant, ...]:
        """All allowed variants, the defaults first."""
        rest = [v for v in self._product() if v not in self.defaults and self.allowed(v)]
        return (*self.defaults, *rest)

    def _product(self) -> Iterator[Variant]:
        for values in itertools.product(*self.axes.values()):
            named = dict(zip(self.axes, values, strict=True))
            warps, stages = named.pop(NUM_WARPS), named.pop(NUM_STAGES, 1)
            yield variant(warps, stages, **named)


@dataclass(frozen=True)
class Launch:
    """All that ahead-of-time compilation needs to know of one kernel launch."""

    kernel: Any
    """A function decorated with `triton.jit`."""
    signature: Mapping[str, str]
    """Run-time argument -> Triton type, for example `*bf16`, `i64`, `fp32`; in the kernel's order of arguments."""
    constants: Mapping[str, Any]
    """Compile-time constants."""
    aligned: tuple[str, ...]
    """Arguments divisible by 16 (bytes of an address, elements of a stride): what vector loads rest on."""
    options: Mapping[str, int | bool]
    """`Variant.options`."""
    label: str = ""
    """Which of a variant's kernels this is, where it has several."""


@dataclass(frozen=True)
class Work:
    """The least that one call moves and computes: what a floor for its time is computed from."""

    bytes: int
    """Inputs read and outputs written, each once."""
    flops: int
    """Arithmetic of matrix products; zero where only memory counts."""


@dataclass(frozen=True)
class Expected:
    """A float64 result and how far an output may lie from it: `atol + rtol * |values|`, element by element."""

    values: Tensor
    rtol: float = 0.0
    atol: Tensor | float = 0.0


class Case(Protocol):
    """Inputs and poisoned output buffers of one call, and what the buffers hold afterwards."""

    def results(self) -> dict[str, Tensor]:
        """Output name -> float64 values, dequantized where the format is quantized."""
        ...


C = TypeVar("C", bound=Case)


class Operator(Protocol[C]):
    """One operator in its formats. `run` and `fallback` write into the case; `reference` leaves it as it is."""

    name: str
    formats: tuple[str, ...]
    dimensions: tuple[str, ...]
    """The names that a shape consists of."""

    def space(self, format: str) -> Space: ...

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]: ...

    def work(self, format: str, shape: Mapping[str, int]) -> Work: ...

    def case(self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu") -> C:
        """Random inputs. `padding` elements lie between rows: the inputs are strided."""
        ...

    def reference(self, case: C) -> dict[str, Expected]: ...

    def run(self, case: C, variant: Variant) -> None: ...

    def fallback(self, case: C) -> None: ...


@dataclass(frozen=True)
class Architecture:
    """Limits of one GPU generation (CUDA programming guide, table of technical specifications)."""

    name: str
    capability: int
    shared_bytes: int
    """Most shared memory that one block may have."""
    registers: int = field(default=65_536)
    """Registers of a multiprocessor, also the most that one block may have."""


ARCHITECTURES: dict[str, Architecture] = {
    "sm_80": Architecture("sm_80", 80, 166_912),
    "sm_89": Architecture("sm_89", 89, 101_376),
    "sm_90": Architecture("sm_90", 90, 232_448),
    "sm_100": Architecture("sm_100", 100, 232_448),
}


def supported(format: str, architecture: Architecture) -> bool:
    """Conversions to fp8 e4m3 begin with sm_89; everything else here begins with sm_80."""
    return architecture.capability >= (89 if format.startswith("fp8") else 80)
