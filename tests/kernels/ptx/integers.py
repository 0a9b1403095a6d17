"""Integer products and instructions on bits, as the PTX ISA defines them."""

from __future__ import annotations

import operator

import numpy as np

from .arithmetic import BITS, FLOATS, WHOLE, Run, Values, floating, known, operands, whole
from .machine import Machine
from .parse import Immediate, Instruction, UnknownError
from .types import TYPES


def _product(count: int) -> Run:
    """`mul` and, of three operands, `mad`: the low or the high half of the product, or all of it."""

    def run(m: Machine, i: Instruction) -> None:
        if i.modifiers[-1] in FLOATS and count == 2:
            floating(2, operator.mul, {"rn"})(m, i)
            return
        given, kind = known(i, WHOLE, {"lo", "hi", "wide"})
        bits = TYPES[kind].itemsize * 8
        if len(given) != 1 or ("lo" not in given and bits == 64):
            raise UnknownError(i.text)
        double = f"{kind[0]}{bits * 2}"
        if "lo" in given:
            a, b, *c = operands(m, i, *[kind] * count)
            m.write(i.operands[0], sum(c, a * b), kind)
            return
        a, b, *c = operands(m, i, kind, kind, *[double if "wide" in given else kind] * (count - 2))
        product = a.astype(TYPES[double]) * b.astype(TYPES[double])
        if "wide" in given:
            m.write(i.operands[0], sum(c, product), double)
        else:
            m.write(i.operands[0], sum(c, (product >> bits).astype(TYPES[kind])), kind)

    return run


def _shift(m: Machine, i: Instruction) -> None:
    """By more than the width: nothing is left but the sign's copies."""
    _, kind = known(i, BITS if i.name == "shl" else BITS | WHOLE)
    a, by = operands(m, i, kind, "u32")
    bits = TYPES[kind].itemsize * 8
    some = np.minimum(by, bits - 1).astype(TYPES[kind])
    shifted = a << some if i.name == "shl" else a >> some
    gone = np.where(a < 0, -1, 0).astype(TYPES[kind]) if kind.startswith("s") else np.zeros_like(a)
    m.write(i.operands[0], np.where(by >= bits, gone, shifted), kind)


def _funnel(m: Machine, i: Instruction) -> None:
    """`shf`: 32 bits of a pair (high b, low a)."""
    side, how, *kind = i.modifiers
    if side not in ("l", "r") or how not in ("wrap", "clamp") or kind != ["b32"]:
        raise UnknownError(i.text)
    a, b, by = operands(m, i, "b32", "b32", "u32")
    some = by & 31 if how == "wrap" else np.minimum(by, 32)
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    moved = both << some.astype(np.uint64) >> np.uint64(32) if side == "l" else both >> some.astype(np.uint64)
    m.write(i.operands[0], moved.astype(np.uint32), "b32")


def _field(m: Machine, i: Instruction) -> None:
    """`bfe`: so many bits from a position on; signed: above them the highest of them, or of the register."""
    _, kind = known(i, {"u32", "s32"})
    a, position, length = operands(m, i, kind, "u32", "u32")
    at, count = (position & 255).astype(np.int64), (length & 255).astype(np.int64)
    last = np.clip(at + count - 1, 0, 31)
    sign = a.view(np.uint32) >> last.astype(np.uint32) & 1 if kind == "s32" else np.zeros_like(last)
    sign = np.where(count == 0, 0, sign)
    result = np.zeros(len(a), np.uint32)
    for bit in range(32):
        source = at + bit
        taken = a.view(np.uint32) >> np.minimum(source, 31).astype(np.uint32) & 1
        value = np.where((bit < count) & (source <= 31), taken, sign)
        result |= value.astype(np.uint32) << np.uint32(bit)
    m.write(i.operands[0], result.view(TYPES[kind]), kind)


def _permute(m: Machine, i: Instruction) -> None:
    """`prmt` without a mode: four bytes of eight; a selector's highest bit means copies of that byte's sign."""
    _, kind = known(i, {"b32"})
    a, b, selector = operands(m, i, kind, kind, kind)
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.zeros(len(a), np.uint32)
    for byte in range(4):
        code = selector >> np.uint32(4 * byte) & 15
        chosen = (both >> (8 * (code & 7)).astype(np.uint64)).astype(np.uint32) & 255
        copies = np.where(chosen >> 7, 255, 0)
        result |= np.where(code >> 3, copies, chosen).astype(np.uint32) << np.uint32(8 * byte)
    m.write(i.operands[0], result, kind)


def _logic(m: Machine, i: Instruction) -> None:
    """`lop3`: bit 4a + 2b + c of the table, for each bit."""
    _, kind = known(i, {"b32"})
    *rest, table = i.operands
    if not isinstance(table, Immediate) or not 0 <= int(table.text, 0) <= 255 or len(rest) != 4:
        raise UnknownError(i.text)
    a, b, c = (m.read(operand, kind) for operand in rest[1:])
    result = np.zeros_like(a)
    for row in range(8):
        if int(table.text, 0) >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    m.write(i.operands[0], result, kind)


def _count(m: Machine, i: Instruction) -> None:
    """`popc`, `clz` of 32 bits."""
    known(i, {"b32"})
    (a,) = operands(m, i, "b32")
    every = a[:, None] >> np.arange(31, -1, -1, dtype=np.uint32) & 1
    clear = np.where(a == 0, 32, every.argmax(1))
    m.write(i.operands[0], (every.sum(1) if i.name == "popc" else clear).astype(np.uint32), "u32")


def _inverted(a: Values) -> Values:
    return ~a


_ANY = BITS | {"pred"}
INSTRUCTIONS: dict[str, Run] = {
    "mul": _product(2), "mad": _product(3), "shl": _shift, "shr": _shift, "shf": _funnel, "bfe": _field,
    "prmt": _permute, "lop3": _logic, "popc": _count, "clz": _count,
    "and": whole(2, operator.and_, _ANY), "or": whole(2, operator.or_, _ANY), "xor": whole(2, operator.xor, _ANY),
    "not": whole(1, _inverted, _ANY),
}  # fmt: skip
