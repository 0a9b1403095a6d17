"""Floating-point instructions, comparisons and selections, as the PTX ISA defines them.

Those that a GPU approximates (`.approx`, `div.full`) are computed to the nearest float32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import numbers
from .machine import Machine
from .numbers import F64
from .parse import Instruction, Symbol, UnknownError
from .types import TYPES

Values = NDArray[np.generic]
Run = Callable[[Machine, Instruction], None]
WHOLE = {f"{kind}{bits}" for kind in "su" for bits in (16, 32, 64)}
BITS = {f"b{bits}" for bits in (16, 32, 64)}
NARROW = {"f16", "bf16", "f16x2", "bf16x2"}
ROUNDED = NARROW | {"f32"}
FLOATS = ROUNDED | {"f64"}


def known(i: Instruction, kinds: set[str], flags: set[str] | None = None) -> tuple[set[str], str]:
    """Modifiers before the type, all of which must be among `flags`, and the type."""
    *before, kind = i.modifiers or ("",)
    if kind not in kinds or not set(before) <= (flags or set()) or len(set(before)) != len(before):
        raise UnknownError(i.text)
    return set(before), kind


def operands(m: Machine, i: Instruction, *kinds: str) -> list[Values]:
    """All but the result."""
    if len(i.operands) != len(kinds) + 1:
        raise UnknownError(i.text)
    return [m.read(operand, kind) for operand, kind in zip(i.operands[1:], kinds, strict=True)]


def wide(values: Values, kind: str, *, flush: bool = False) -> list[F64]:
    """Numbers of a floating-point type in float64; of pairs the low ones first."""
    if kind == "f32":
        return [(numbers.flushed(values) if flush else values).astype(np.float64)]
    if kind == "f64":
        return [values.astype(np.float64)]
    pair = TYPES[kind].itemsize == 4
    bits = [(values & 0xFFFF), (values >> 16)] if pair else [values.view(np.uint16)]
    if kind.startswith("bf16"):
        return [numbers.from_bf16(half.astype(np.uint16)).astype(np.float64) for half in bits]
    return [half.astype(np.uint16).view(np.float16).astype(np.float64) for half in bits]


def narrow(parts: list[F64], kind: str, *, flush: bool = False) -> Values:
    """The inverse of `wide`, rounded to nearest even; NaN is canonical."""
    if kind == "f64":
        return parts[0]
    if kind == "f32":
        single = numbers.quiet(parts[0].astype(np.float32))
        return numbers.flushed(single) if flush else single
    bits = [numbers.bf16_bits(p) if kind.startswith("bf16") else numbers.f16_bits(p) for p in parts]
    if len(bits) == 2:
        return bits[0].astype(np.uint32) | bits[1].astype(np.uint32) << 16
    return bits[0] if kind == "bf16" else bits[0].view(np.float16)


def floating(count: int, exact: Callable[..., F64], flags: set[str], kinds: set[str] = FLOATS) -> Run:
    """`exact`: float64 numbers -> what is rounded once more to the type."""

    def run(m: Machine, i: Instruction) -> None:
        given, kind = known(i, kinds, flags | {"ftz"})
        flush = "ftz" in given
        read = [wide(values, kind, flush=flush) for values in operands(m, i, *[kind] * count)]
        m.write(i.operands[0], narrow([exact(*part) for part in zip(*read, strict=True)], kind, flush=flush), kind)

    return run


def added(a: F64, b: F64) -> F64:
    """So that it can be rounded once more."""
    return numbers.to_odd(a, np.ones_like(a), b)


def _either(of_floats: Run, of_integers: Run) -> Run:
    def run(m: Machine, i: Instruction) -> None:
        (of_floats if i.modifiers and i.modifiers[-1] in FLOATS else of_integers)(m, i)

    return run


def whole(count: int, compute: Callable[..., Values], kinds: set[str] = WHOLE) -> Run:
    def run(m: Machine, i: Instruction) -> None:
        _, kind = known(i, kinds)
        m.write(i.operands[0], compute(*operands(m, i, *[kind] * count)), kind)

    return run


def _extreme(smaller: bool) -> Run:
    """A number goes before NaN but for `.NaN`; -0 lies below +0."""

    def run(m: Machine, i: Instruction) -> None:
        given, kind = known(i, FLOATS, {"ftz", "NaN", "xorsign", "abs"})
        if ("xorsign" in given) != ("abs" in given):
            raise UnknownError(i.text)
        parts = []
        read = [wide(values, kind, flush="ftz" in given) for values in operands(m, i, kind, kind)]
        for a, b in zip(*read, strict=True):
            sign = np.signbit(a) ^ np.signbit(b)
            a, b = (np.abs(a), np.abs(b)) if "abs" in given else (a, b)
            below = (a < b) | ((a == b) & np.signbit(a))
            least, most = np.where(below, a, b), np.where(below, b, a)
            chosen = np.where(np.isnan(a), b, np.where(np.isnan(b), a, least if smaller else most))
            chosen = np.where(sign, -chosen, chosen) if "abs" in given else chosen
            parts.append(np.where(np.isnan(a) | np.isnan(b), np.nan, chosen) if "NaN" in given else chosen)
        m.write(i.operands[0], narrow(parts, kind), kind)

    return run


def _sign(change: bool) -> Run:
    """`neg`, `abs`: bits alone, so NaN stays."""

    def run(m: Machine, i: Instruction) -> None:
        _, kind = known(i, FLOATS, {"ftz"} if i.modifiers[-1] == "f32" else set())
        (values,) = operands(m, i, kind)
        if "ftz" in i.modifiers:
            values = numbers.flushed(values)
        unsigned = f"u{TYPES[kind].itemsize}"
        bit = 0x80008000 if kind.endswith("x2") else 1 << (8 * TYPES[kind].itemsize - 1)
        bits = values.view(unsigned)
        mask = np.array(bit, unsigned)
        m.write(i.operands[0], (bits ^ mask if change else bits & ~mask).view(TYPES[kind]), kind)

    return run


def _approximated(function: Callable[[F64], F64]) -> Run:
    def run(m: Machine, i: Instruction) -> None:
        if i.modifiers[:1] != ("approx",):
            raise UnknownError(i.text)
        floating(1, function, {"approx"}, {"f32"})(m, i)

    return run


def _quotient(m: Machine, i: Instruction) -> None:
    if i.modifiers[-1] != "f32":
        _whole_quotient(m, i)
        return
    how = i.modifiers[0]
    if how not in ("full", "approx", "rn"):
        raise UnknownError(i.text)

    def exact(a: F64, b: F64) -> F64:
        quotient = a / b  # 53 bits are enough to be rounded to 24 once more
        return np.where(np.abs(b) > 2.0**126, a * 0, quotient) if how == "approx" else quotient

    floating(2, exact, {how}, {"f32"})(m, i)


def _whole_quotient(m: Machine, i: Instruction) -> None:
    _, kind = known(i, WHOLE)
    a, b = operands(m, i, kind, kind)
    if (b == 0).any():
        raise UnknownError(f"division by zero: {i.text}")
    m.write(i.operands[0], np.fmod(a, b) if i.name == "rem" else (a - np.fmod(a, b)) // b, kind)


_ORDERED = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
_UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def _compare(m: Machine, i: Instruction) -> None:
    given, kind = known(i, WHOLE | BITS | FLOATS - {"f16x2", "bf16x2"}, {*i.modifiers[:1], "ftz"})
    how = i.modifiers[0]
    a, b = operands(m, i, kind, kind)
    if kind in FLOATS:
        (a,), (b,) = (wide(values, kind, flush="ftz" in given) for values in (a, b))
        missing = np.isnan(a) | np.isnan(b)
        if how in ("num", "nan"):
            result = missing if how == "nan" else ~missing
        elif how in _ORDERED:
            result = _ORDERED[how](a, b) & ~missing
        elif how.endswith("u") and how[:-1] in _ORDERED:
            result = _ORDERED[how[:-1]](a, b) | missing
        else:
            raise UnknownError(i.text)
    elif how in _ORDERED and (kind not in BITS or how in ("eq", "ne")):
        result = _ORDERED[how](a, b)
    elif how in _UNSIGNED and kind.startswith("u"):
        result = _UNSIGNED[how](a, b)
    else:
        raise UnknownError(i.text)
    m.write(i.operands[0], result, "pred")


def _select(m: Machine, i: Instruction) -> None:
    _, kind = known(i, WHOLE | BITS | {"f32", "f64"})
    a, b, condition = operands(m, i, kind, kind, "pred")
    m.write(i.operands[0], np.where(condition, a, b), kind)


def _move(m: Machine, i: Instruction) -> None:
    _, kind = known(i, WHOLE | BITS | {"f32", "f64", "pred"})
    (value,) = operands(m, i, kind)
    if kind == "pred" and isinstance(i.operands[1], Symbol):
        raise UnknownError(i.text)
    m.write(i.operands[0], value, kind)


INSTRUCTIONS: dict[str, Run] = {
    "add": _either(floating(2, added, {"rn"}, ROUNDED), whole(2, operator.add)),
    "sub": _either(floating(2, lambda a, b: added(a, -b), {"rn"}, ROUNDED), whole(2, operator.sub)),
    "fma": floating(3, numbers.to_odd, {"rn"}, ROUNDED),
    "min": _either(_extreme(True), whole(2, np.minimum)),
    "max": _either(_extreme(False), whole(2, np.maximum)),
    "neg": _either(_sign(True), whole(1, np.negative)),
    "abs": _either(_sign(False), whole(1, np.abs)),
    "div": _quotient,
    "rem": _whole_quotient,
    "ex2": _approximated(np.exp2),
    "lg2": _approximated(np.log2),
    "rsqrt": _approximated(lambda x: 1 / np.sqrt(x)),
    "rcp": _approximated(lambda x: 1 / x),
    "sqrt": _approximated(np.sqrt),
    "tanh": _approximated(np.tanh),
    "setp": _compare,
    "selp": _select,
    "mov": _move,
}
"""`mul`, which whole numbers have of several kinds, is in `integers.py`."""
