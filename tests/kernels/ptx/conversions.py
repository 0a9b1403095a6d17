"""Conversions, `cvt`, as the PTX ISA defines them."""

from __future__ import annotations

import numpy as np

from . import numbers
from .arithmetic import FLOATS, NARROW, WHOLE, Run, Values, narrow, operands, wide
from .machine import Machine
from .numbers import F64
from .parse import Instruction, UnknownError
from .types import TYPES

_ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _convert(m: Machine, i: Instruction) -> None:
    *given, to, of = i.modifiers
    if (to, of) in _PAIRS:
        if tuple(given) != _PAIRS[to, of]:
            raise UnknownError(i.text)
        _convert_pair(m, i, to, of)
        return
    kinds = WHOLE | {"u8", "s8", "f32", "f64", "f16", "bf16"}
    if to not in kinds or of not in kinds:
        raise UnknownError(i.text)
    (value,) = operands(m, i, of)
    if of not in FLOATS:
        if given != (["rn"] if to in FLOATS else []) or to in NARROW:
            raise UnknownError(i.text)
        m.write(i.operands[0], value.astype(TYPES[to]), to)
        return
    (exact,) = wide(value, of)
    if to not in FLOATS:
        if len(given) != 1 or given[0] not in _ROUNDINGS:
            raise UnknownError(i.text)
        m.write(i.operands[0], _clamped(_ROUNDINGS[given[0]](exact), to, of), to)
    elif to != of and given == (["rn"] if TYPES[to].itemsize < TYPES[of].itemsize else []):
        m.write(i.operands[0], narrow([exact], to), to)
    elif to == of and len(given) == 1 and given[0] in _ROUNDINGS:
        m.write(i.operands[0], narrow([_ROUNDINGS[given[0]](exact)], to), to)
    else:
        raise UnknownError(i.text)


def _clamped(x: F64, to: str, of: str) -> Values:
    """Float -> integer: cut to what the type holds; NaN is zero, or the sign's bit where 64 bits take part."""
    limits = np.iinfo(TYPES[to])
    inside = np.where(np.isnan(x) | (x >= 2.0**63 if limits.bits == 64 else x > limits.max) | (x < limits.min), 0.0, x)
    result = inside.astype(TYPES[to])
    result = np.where(x >= limits.max, limits.max, np.where(x <= limits.min, limits.min, result))
    missing = limits.min if to.startswith("s") else (limits.max >> 1) + 1
    wide = of == "f64" or limits.bits == 64
    return np.where(np.isnan(x), missing if wide else 0, result).astype(TYPES[to])


_PAIRS = {
    ("bf16x2", "f32"): ("rn",), ("f16x2", "f32"): ("rn",), ("e4m3x2", "f32"): ("rn", "satfinite"),
    ("f16x2", "e4m3x2"): ("rn",),
}  # fmt: skip
"""(To, from) -> the modifiers that it must have. Of two float32 the first becomes the high half."""


def _convert_pair(m: Machine, i: Instruction, to: str, of: str) -> None:
    if of == "e4m3x2":
        (codes,) = operands(m, i, of)
        parts = [numbers.from_e4m3((codes >> shift).astype(np.uint8)) for shift in (0, 8)]
        m.write(i.operands[0], narrow(parts, to), to)
        return
    high, low = (value.astype(np.float64) for value in operands(m, i, of, of))
    if to != "e4m3x2":
        m.write(i.operands[0], narrow([low, high], to), to)
        return
    bits = [numbers.e4m3_bits(part).astype(np.uint16) for part in (low, high)]
    m.write(i.operands[0], bits[0] | bits[1] << 8, to)


INSTRUCTIONS: dict[str, Run] = {"cvt": _convert}
