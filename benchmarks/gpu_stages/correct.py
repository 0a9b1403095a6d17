"""Kernels against float64, on the GPU."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from gpu_stages import Result, Session

Asked = tuple[str, Any]
"""(operator, `Question`)"""
SINKS = {name: f"fwopt_kernels.{name}:WITH_SINKS" for name in ("decode_attention", "prefill_attention")}
"""Operators once more, with attention sinks and a window."""


def first(session: Session) -> Result:
    """What has only ever been compiled, smallest inputs first: kernels with inline PTX (`w4a16`), 8-bit products, tiles
    fetched by TMA, whose launch needs an allocator; then each default of each format. Seconds, and it says whether the
    minutes that follow are worth spending."""
    return _asked(list(_never_run(session)), session, timeout_s=45)


def _never_run(session: Session) -> Iterator[Asked]:
    from fwopt_kernels.contract import ARCHITECTURES, supported
    from fwopt_kernels.registry import OPERATORS, load
    from fwopt_kernels.timing import Question

    products = ["w4a16", "fp8_gemm", "int8_gemm"]
    order = [*products, *(name for name in OPERATORS if name not in products)]
    arch = ARCHITECTURES[session.before["machine"]["arch"] or "sm_90"]
    for name in order:
        operator = load(OPERATORS[name])
        shape = shapes(operator.dimensions, session.small)[1]
        for format in operator.formats:
            if not supported(format, arch):
                continue
            space = operator.space(format)
            asked: list[Any] = list(dict.fromkeys([*space.defaults, *_one_of_each(space.variants())]))
            for variant in [None] if session.small else asked:
                yield name, Question(OPERATORS[name], format, shape, variant, session.device, 0.0)
                if name in SINKS:
                    yield f"{name} with sinks", Question(SINKS[name], format, shape, variant, session.device, 0.0)


def _one_of_each(variants: tuple[Any, ...]) -> list[Any]:
    """For every constant that switches code on and off, the first variant that has it on; for schedules, of each."""
    found = []
    for switch, on in (("TMA", 1), ("SWAP_AB", 1), ("LATE_SCALE", 1), ("PERSIST", 1), ("PERSIST", 2)):
        having = [v for v in variants if dict(v.constants).get(switch) == on]
        found += having[:1]
        found += [v for v in having if dict(v.constants).get("SPLIT_K", 1) > 1][:1]
    return list(dict.fromkeys(found))


def run(session: Session) -> Result:
    """The default and a sample of variants of every operator at three sizes."""
    from fwopt_kernels.registry import OPERATORS, load
    from fwopt_kernels.timing import Question

    rejected = {(s["operator"], s["format"], v) for s in session.before["check"]["spaces"] for v, _ in s["rejected"]}
    questions: list[tuple[int, str, Any]] = []
    for name, target in OPERATORS.items():
        operator = load(target)
        for format in operator.formats:
            space = operator.space(format)
            rest = [v for v in space.variants() if v not in space.defaults]
            sample = [*space.defaults, *random.Random(0).sample(rest, min(7, len(rest)))]
            sample = [None] if session.small else [v for v in sample if (name, format, v.id) not in rejected]
            for at, shape in enumerate(shapes(operator.dimensions, session.small)):
                questions += [(at, name, Question(target, format, shape, v, session.device, 0.0)) for v in sample]
    questions.sort(key=lambda q: q[0])
    return _asked([(name, question) for _, name, question in questions], session, timeout_s=60)


def _asked(questions: list[Asked], session: Session, *, timeout_s: float) -> Result:
    """One line for each output outside its tolerance, each crash, each hang."""
    from fwopt_kernels.apart import Fault
    from fwopt_kernels.timing import checker

    child, wrong, done = checker(timeout_s=timeout_s), [], 0
    ends = time.monotonic() + 0.9 * session.seconds
    for name, question in questions:
        if time.monotonic() > ends:
            break
        answer = child.ask(question)
        done += 1
        if isinstance(answer, Fault):
            variant = question.variant.id if question.variant else "torch"
            wrong.append([name, question.format, dict(question.shape), variant, answer.reason])
    child.close()
    return {"asked": done, "of": len(questions), "wrong": wrong}


def shapes(dimensions: tuple[str, ...], small: bool) -> list[tuple[tuple[str, int], ...]]:
    """A step that decodes little, one with odd numbers, one that is large."""
    shapes = []
    for rows in (1, 5) if small else (1, 33, 700):
        facts = {
            "rows": rows, "tokens": rows, "m": rows, "columns": 4096, "n": 1536, "k": 2048, "heads": 32, "kv_heads": 8,
            "head_dim": 128, "rotary_dim": 128, "block_size": 16, "sequences": min(rows, 40), "batch": min(rows, 40),
            "shortest": 1, "context": 1500, "experts": 16, "top_k": 4, "hidden": 1024, "intermediate": 512,
            "vocabulary": 151_936, "adapters": 6, "rank": (16, 64, 200)[len(shapes)], "inputs": 4096, "outputs": 6144,
        }  # fmt: skip
        if small:
            facts |= {"columns": 512, "n": 256, "k": 256, "context": 200, "experts": 4, "top_k": 2, "hidden": 256,
                      "vocabulary": 1000, "intermediate": 128, "heads": 8, "kv_heads": 2, "inputs": 256,
                      "outputs": 384}  # fmt: skip
        shapes.append(tuple((d, facts[d]) for d in dimensions))
    return shapes
