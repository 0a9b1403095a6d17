"""Variants on a real device: compiled and judged ahead of time, then checked and timed in a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fwopt.errors import InputError
from fwopt.tuning.family import Family, shape_of
from fwopt.tuning.operators import compiles_ahead, load_operator, targets
from fwopt.tuning.search import EFFORTS_S, Measured
from fwopt.tuning.surrogate import Floats

if TYPE_CHECKING:
    from fwopt_kernels.aot import Job, Outcome
    from fwopt_kernels.apart import Child
    from fwopt_kernels.compiler import Resources
    from fwopt_kernels.contract import Variant
    from fwopt_kernels.elsewhere import Elsewhere
    from fwopt_kernels.host import Host
    from fwopt_kernels.timing import Question, Timing

Tell = Callable[[str, int, int], None]


def describe(device: str, elsewhere: Elsewhere | None = None) -> Host:
    """The device that times will hold for, as that Python sees it; one line where there is none."""
    from fwopt_kernels.apart import Fault, ask_once
    from fwopt_kernels.host import describe as there

    found = ask_once(there, device, timeout_s=120, elsewhere=elsewhere)
    if isinstance(found, Fault):
        advice = "; --device cpu times the torch fallbacks" if device == "cuda" else ""
        raise InputError(f"--device {device}: {found.reason}{advice}")
    return found


@dataclass(slots=True)
class Candidates:
    """The variants of an operator in one format that may be timed; the default first."""

    variants: list[Variant | None]
    features: Floats
    rejected: list[tuple[str, str]]
    """(variant, reason) of those that the GPU cannot run or the compiler not compile"""
    left_out: int = 0
    """Not compiled within the budget."""

    def with_all(self, wanted: Iterable[Variant]) -> Candidates:
        """With these too, of a kernel that is not compiled ahead."""
        more = [variant for variant in dict.fromkeys(wanted) if variant not in self.variants]
        rows = [*self.features, *(np.asarray(_features(variant, ())) for variant in more)]
        return replace(self, variants=[*self.variants, *more], features=np.asarray(rows))


def candidates(
    wanted: Iterable[tuple[str, str]], host: Host, *, time_left: Callable[[], bool], tell: Tell
) -> dict[tuple[str, str], Candidates]:
    """Per (operator, format). On a processor there is the torch fallback alone."""
    wanted = list(dict.fromkeys(wanted))
    if host.arch is None:
        return {key: Candidates([None], np.zeros((1, 1)), []) for key in wanted}
    return _compiled(wanted, host.arch, time_left, tell)


def _compiled(
    wanted: list[tuple[str, str]], arch: str, time_left: Callable[[], bool], tell: Tell
) -> dict[tuple[str, str], Candidates]:
    from fwopt_kernels.aot import Job, compile_all
    from fwopt_kernels.contract import ARCHITECTURES, supported

    if arch not in ARCHITECTURES:
        raise InputError(f"kernels are known for {', '.join(ARCHITECTURES)}, the GPU here is {arch}")
    spaces = {
        (name, format): load_operator(name).space(format).variants()
        for name, format in wanted
        if supported(format, ARCHITECTURES[arch])
    }
    # defaults first, then one variant of each space in turn: a budget that ends early has seen some of all
    jobs: list[Job] = []
    for at in range(max((len(v) for v in spaces.values()), default=0)):
        jobs += [Job(targets()[n], f, v[at], arch) for (n, f), v in spaces.items() if at < len(v) and compiles_ahead(n)]
    outcomes: dict[Job, Outcome] = {}
    for outcome in compile_all(jobs):
        outcomes[outcome.job] = outcome
        tell("compiling variants", len(outcomes), len(jobs))
        if not time_left():
            break
    return {
        (name, format): _judged([(v, outcomes.get(Job(targets()[name], format, v, arch))) for v in space])
        if compiles_ahead(name)
        else Candidates([*space], np.asarray([_features(v, ()) for v in space]), [])
        for (name, format), space in spaces.items()
    }


def _judged(found: list[tuple[Variant, Outcome | None]]) -> Candidates:
    good, rows, rejected, left_out = [], [], [], 0
    for variant, outcome in found:
        if outcome is None:
            left_out += 1
            continue
        reason = outcome.failure or outcome.rejection
        if reason is not None:
            rejected.append((variant.id, reason))
            continue
        good.append(variant)
        rows.append(_features(variant, outcome.kernels))
    return Candidates([*good], np.asarray(rows), rejected, left_out)


def _features(variant: Variant, kernels: tuple[Resources, ...]) -> list[float]:
    """In which like variants lie near each other: constants in factors of two, and what the compiler made of them."""
    own = [float(value) for _, value in variant.constants] + [variant.num_warps, variant.num_stages]
    registers = max((kernel.registers for kernel in kernels), default=1)
    shared = max((kernel.shared_bytes for kernel in kernels), default=0)
    return [*(float(np.log2(1 + value)) for value in own), float(np.log2(registers)), float(np.log2(1024 + shared))]


@dataclass(slots=True)
class Bench:
    """Answers the search from the device."""

    host: Host
    seed: int
    child: Child[Question, Timing]
    timings: dict[tuple[Any, ...], Timing] = field(default_factory=dict)
    """(operator, format, shape, variant) -> its longest measurement"""
    measurements: int = 0

    def question(self, family: Family, point: tuple[int, ...], variant: Variant | None, effort_s: float) -> Question:
        from fwopt_kernels.timing import Question

        target = targets()[family.operator]
        shape = shape_of(family, point, load_operator(family.operator).dimensions)
        return Question(target, family.format, shape, variant, self.host.device, effort_s, self.seed)

    def time(self, family: Family, point: tuple[int, ...], variant: Variant | None, effort_s: float) -> Measured | str:
        from fwopt_kernels.apart import Fault

        question = self.question(family, point, variant, effort_s)
        self.measurements += 1
        answer = self.child.ask(question)
        if isinstance(answer, Fault):
            return answer.reason
        self.timings[family.operator, family.format, question.shape, variant] = answer
        return Measured(answer.p50_s, max(answer.noise, 1e-3), EFFORTS_S.index(effort_s))
