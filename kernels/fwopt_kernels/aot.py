"""Every variant compiled ahead of time: which ones a GPU generation can run, and what they take, without a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from fwopt_kernels.apart import Fault, ask_all, one_line
from fwopt_kernels.compiler import Resources, compile_launch
from fwopt_kernels.contract import ARCHITECTURES, Architecture, Variant
from fwopt_kernels.registry import load

COMPILE_S = 300.0
"""Most that one variant may take; a variant takes 0.5 to 3 s."""


@dataclass(frozen=True)
class Job:
    """One variant to compile; `target` is the operator's `module:attribute`."""

    target: str
    format: str
    variant: Variant
    arch: str


@dataclass(frozen=True)
class Outcome:
    """A variant's kernels and what they take, or the one line that the compiler failed with."""

    job: Job
    kernels: tuple[Resources, ...]
    failure: str | None

    @property
    def rejection(self) -> str | None:
        """Why the GPU should not run it, with numbers; None when it should."""
        for kernel in self.kernels:
            reason = judge(kernel, ARCHITECTURES[self.job.arch])
            if reason is not None:
                return f"{kernel.label}: {reason}" if kernel.label else reason
        return None


def judge(kernel: Resources, arch: Architecture) -> str | None:
    """The first limit of `arch` that a compiled kernel breaks, or None."""
    if kernel.shared_bytes > arch.shared_bytes:
        return f"{kernel.shared_bytes:,} bytes of shared memory; {arch.name} has {arch.shared_bytes:,}"
    if kernel.stack_bytes > 0:
        return f"{kernel.stack_bytes:,} bytes of stack a thread: registers spill to memory"
    taken = -(-kernel.registers // 8) * 8 * kernel.threads  # registers are handed out by eights
    if taken > arch.registers:
        return f"{kernel.registers} registers x {kernel.threads} threads; {arch.name} has {arch.registers:,}"
    return None


def compile_all(jobs: Iterable[Job], *, workers: int | None = None) -> Iterator[Outcome]:
    """Outcomes as they come: those known from before first, then the rest, compiled in parallel processes."""
    todo: list[Job] = []
    for job in jobs:
        known = _read(job)
        if known is None:
            todo.append(job)
        else:
            yield known
    if not todo:
        return
    count = min(workers or os.cpu_count() or 1, len(todo))
    for job, answer in ask_all(_compile, todo, workers=count, prepare=_settle_environment, timeout_s=COMPILE_S):
        outcome = Outcome(job, (), f"compiling: {answer.reason}") if isinstance(answer, Fault) else answer
        with contextlib.suppress(OSError):  # without a cache folder the next run compiles again
            _write(outcome)
        yield outcome


def _settle_environment() -> None:
    """An interpreted kernel cannot be compiled (Triton decides when a kernel's module is imported), and one that
    Triton has in its own cache tells no compile time."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"


def _compile(job: Job) -> Outcome:
    """In a worker: a failure of the compiler is a result, not an error of this program."""
    try:
        launches = load(job.target).launches(job.format, job.variant)
        kernels = tuple(compile_launch(launch, ARCHITECTURES[job.arch]) for launch in launches)
    except Exception as error:
        return Outcome(job, (), one_line(error))
    return Outcome(job, kernels, None)


def _folder() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fwopt" / "kernels"


@cache
def sources(target: str) -> str:
    """Hash of everything that a kernel's code may come from: this package and the operator's own module."""
    module = importlib.util.find_spec(target.partition(":")[0])
    own = [Path(module.origin)] if module is not None and module.origin else []
    digest = hashlib.sha256()
    for file in [*sorted(Path(__file__).parent.rglob("*.py")), *own]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _key(job: Job) -> str:
    parts = (importlib.metadata.version("triton"), sources(job.target), job.target, job.format)
    return hashlib.sha256("\n".join([*parts, job.variant.id, job.arch]).encode()).hexdigest()[:32]


def _read(job: Job) -> Outcome | None:
    """What an earlier run learnt; failures are tried again."""
    try:
        rows = json.loads((_folder() / f"{_key(job)}.json").read_bytes())
        return Outcome(job, tuple(Resources(**row) for row in rows), None)
    except (OSError, ValueError, TypeError):
        return None


def _write(outcome: Outcome) -> None:
    if outcome.failure is not None:
        return
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump([asdict(kernel) for kernel in outcome.kernels], file)
    Path(file.name).replace(folder / f"{_key(outcome.job)}.json")
