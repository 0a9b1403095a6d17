"""How long one variant of an operator takes, on memory that no cache holds, after it was found correct there.

On a GPU the calls are one CUDA graph, so launching costs what it costs in a serving engine's graphs. Each call of the
graph works on inputs of its own, together larger than the L2 cache several times over. Operators that touch only a few
kilobytes stay in the L2 even so: in an engine their inputs, just written by the kernel before, lie there too.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fwopt_kernels.apart import Child, Spent, one_line
from fwopt_kernels.contract import Expected, Operator, Variant
from fwopt_kernels.correctness import faults
from fwopt_kernels.elsewhere import Elsewhere
from fwopt_kernels.registry import load

LEAST_SAMPLES = 5
WARM_UP_S = {"cuda": 0.02, "cpu": 0.0}
CACHES = 4
"""The inputs of a round are at least so many times the cache."""
CPU_CACHE_BYTES = 16 * 2**20
"""A core's own caches and its part of the last level."""
MOST_COPIES = {"cuda": 128, "cpu": 16}
MEMORY_SHARE = 0.5
"""Of the free memory, for copies of the inputs."""
TIMEOUT_S = 120.0
"""Of one measurement: compiling, checking and timing."""


@dataclass(frozen=True)
class Question:
    """One variant at one shape; `variant` None is the torch fallback."""

    target: str
    format: str
    shape: tuple[tuple[str, int], ...]
    variant: Variant | None
    device: str
    """cuda or cpu"""
    effort_s: float
    """Time to measure for, warm-up, compilation and check apart."""
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """Seconds of one call; a sample is the mean over one round through all copies of the inputs."""

    p20_s: float
    p50_s: float
    p80_s: float
    samples: int
    copies: int

    @property
    def noise(self) -> float:
        """Spread of the samples over their median."""
        return (self.p80_s - self.p20_s) / self.p50_s


class WrongResultError(Exception):
    """The variant does not compute what its reference says."""


@dataclass
class _Subject:
    """An operator at one shape on a device: inputs, reference, and the variants that were found correct."""

    key: tuple[Any, ...]
    operator: Operator[Any]
    device: str
    pristine: Any
    reference: dict[str, Expected]
    copies: list[Any]
    checked: set[Variant | None] = field(default_factory=set)


_KEPT: list[_Subject] = []
"""In a child: the subject of the last question."""


def bench(*, timeout_s: float = TIMEOUT_S, elsewhere: Elsewhere | None = None) -> Child[Question, Timing]:
    """A process that measures; a variant that crashes or hangs it costs one line, and the next gets a fresh one."""
    return Child(measure, compile_kernels, timeout_s, elsewhere=elsewhere)


def checker(*, timeout_s: float = TIMEOUT_S) -> Child[Question, None]:
    """A process that only checks."""
    return Child(verify, compile_kernels, timeout_s)


def compile_kernels() -> None:
    """In a child, before Triton is imported: kernels are compiled, whatever the parent does."""
    os.environ.pop("TRITON_INTERPRET", None)


def verify(question: Question) -> None:
    """`measure` without the timing."""
    _measured(question, timing=False)


def measure(question: Question) -> Timing:
    """Check, then time. Raises for a variant that cannot run or errs; `Spent` where the process cannot go on."""
    timing = _measured(question, timing=True)
    assert timing is not None
    return timing


def _measured(question: Question, *, timing: bool) -> Timing | None:
    try:
        subject = _subject(question)
        _check(subject, question.variant)
        if not timing:
            return None
        if not subject.copies:
            nbytes = subject.operator.work(question.format, dict(question.shape)).bytes
            subject.copies = _copies(subject.pristine, nbytes, question.device)
        calls = [_call(subject.operator, case, question.variant) for case in subject.copies]
        return time_calls(calls, question.device, question.effort_s, graph=question.variant is not None)
    except WrongResultError:
        raise
    except Exception as error:
        _KEPT.clear()
        _recover(question.device, error)
        raise


def _recover(device: str, error: Exception) -> None:
    """After an illegal address every later call of the process fails; after a lack of memory none need to."""
    if device != "cuda":
        return
    import torch

    reason = one_line(error)
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        raise Spent(reason) from error


def _call(operator: Operator[Any], case: Any, variant: Variant | None) -> Callable[[], None]:
    return partial(operator.fallback, case) if variant is None else partial(operator.run, case, variant)


def _subject(q: Question) -> _Subject:
    key = (q.target, q.format, q.shape, q.device, q.seed)
    if not _KEPT or _KEPT[0].key != key:
        _KEPT.clear()
        operator, shape = load(q.target), dict(q.shape)
        pristine = operator.case(q.format, shape, q.seed, device=q.device)
        reference = operator.reference(pristine)
        _KEPT.append(_Subject(key, operator, q.device, pristine, reference, []))
    return _KEPT[0]


def _copies(case: Any, nbytes: int, device: str) -> list[Any]:
    count = max(1, min(MOST_COPIES[device], -(-CACHES * cache_bytes(device) // max(nbytes, 1))))
    if device == "cpu":
        return [copy.deepcopy(case) for _ in range(count)]
    import torch

    before = torch.cuda.memory_allocated()
    copies = [copy.deepcopy(case)]
    each = max(torch.cuda.memory_allocated() - before, 1)
    fit = int(torch.cuda.mem_get_info()[0] * MEMORY_SHARE / each)
    return copies + [copy.deepcopy(case) for _ in range(min(count - 1, fit))]


def cache_bytes(device: str) -> int:
    """Size of the cache that rounds must exceed."""
    if device == "cpu":
        return CPU_CACHE_BYTES
    import torch

    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def _check(subject: _Subject, variant: Variant | None) -> None:
    if variant in subject.checked:
        return
    case = copy.deepcopy(subject.pristine)
    _call(subject.operator, case, variant)()
    found = faults(case.results(), subject.reference)
    if found:
        raise WrongResultError("; ".join(found))
    subject.checked.add(variant)


def time_calls(calls: Sequence[Callable[[], Any]], device: str, effort_s: float, *, graph: bool = True) -> Timing:
    """`calls` do equal work on different memory. `graph`: as one CUDA graph (on a processor there is none)."""
    for call in calls:
        call()
    round_s = _gpu_round(calls, graph) if device == "cuda" else processor_round(calls)
    started = time.perf_counter()
    while time.perf_counter() - started < WARM_UP_S[device]:
        round_s()
    rounds = sampled(round_s, effort_s)
    p20, p50, p80 = (seconds / len(calls) for seconds in quantiles(rounds))
    return Timing(p20, p50, p80, len(rounds), len(calls))


def sampled(
    round_s: Callable[[], float], effort_s: float, *, least: int = LEAST_SAMPLES, most_s: float = math.inf
) -> list[float]:
    """Seconds of rounds, until there are `least` of them and `effort_s` was spent, or `most_s` was."""
    samples: list[float] = []
    spent = 0.0
    while (len(samples) < least or spent < effort_s) and spent < most_s:
        samples.append(round_s())
        spent += samples[-1]
    return samples


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50, p80: what is kept of every measurement."""
    import numpy as np

    p20, p50, p80 = (float(q) for q in np.quantile(samples, (0.2, 0.5, 0.8)))
    return p20, p50, p80


def processor_round(calls: Sequence[Callable[[], Any]]) -> Callable[[], float]:
    def one() -> float:
        before = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - before

    return one


def _gpu_round(calls: Sequence[Callable[[], Any]], graph: bool) -> Callable[[], float]:
    import torch

    torch.cuda.synchronize()

    def every() -> None:
        for call in calls:
            call()

    return gpu_clock(captured(every) if graph else every)


def gpu_clock(work: Callable[[], None]) -> Callable[[], float]:
    """Runs `work` and says how many seconds the GPU took for it."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def one() -> float:
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return one


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """Replays of `work` as a CUDA graph."""
    import torch

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    side.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        work()
    return recorded.replay
