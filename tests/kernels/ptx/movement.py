"""Loads, stores, asynchronous copies, and numbers passed among a warp's threads (PTX ISA)."""

from __future__ import annotations

import numpy as np

from .arithmetic import BITS, WHOLE, Run
from .machine import WARP, Machine
from .parse import Address, Both, Immediate, Instruction, Operand, Symbol, UnknownError, Vector
from .types import TYPES

_KINDS = WHOLE | BITS | {"b8", "u8", "s8", "f32", "f64"}
_CACHED = {("L1::evict_first",), ("L1::evict_last",), ()}
_SPACES = {"global": "global", "shared": "shared", "shared::cta": "shared"}


def _access(i: Instruction) -> tuple[str, int, str]:
    """Space, numbers and type of a load or store; how it is cached changes nothing."""
    space, *rest = i.modifiers
    *how, kind = rest
    count = int(how.pop()[1]) if how and how[-1] in ("v2", "v4") else 1
    if space not in _SPACES or tuple(how) not in _CACHED or kind not in _KINDS:
        raise UnknownError(i.text)
    return _SPACES[space], count, kind


def numbers_of(i: Instruction, operand: Operand, count: int) -> tuple[Operand | None, ...]:
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    if len(parts) != count:
        raise UnknownError(i.text)
    return parts


def _load(m: Machine, i: Instruction) -> None:
    if i.modifiers[0] == "param":
        _parameter(m, i)
        return
    space, count, kind = _access(i)
    to, source = i.operands
    size = TYPES[kind].itemsize
    read = m.load(m.addresses(source, space, size * count), space, size * count)
    values = np.ascontiguousarray(read).view(TYPES[kind])
    for n, part in enumerate(numbers_of(i, to, count)):
        m.write(part, values[:, n], kind)


def _parameter(m: Machine, i: Instruction) -> None:
    to, source = i.operands
    if len(i.modifiers) != 2 or i.modifiers[1] not in _KINDS or not isinstance(source, Address):
        raise UnknownError(i.text)
    kind = TYPES[i.modifiers[1]]
    if not isinstance(source.base, Symbol) or source.offset or source.base.name not in m.arguments:
        raise UnknownError(i.text)
    if m.program.parameters[source.base.name] != 8 * kind.itemsize:
        raise UnknownError(i.text)
    bits = np.full(len(m.lanes), m.arguments[source.base.name], np.uint64)
    m.write(to, bits.astype(f"u{kind.itemsize}").view(kind), i.modifiers[1])


def _store(m: Machine, i: Instruction) -> None:
    space, count, kind = _access(i)
    to, source = i.operands
    parts = [part for part in numbers_of(i, source, count) if part is not None]
    if len(parts) != count:
        raise UnknownError(i.text)
    values = np.stack([m.read(part, kind) for part in parts], 1)
    size = TYPES[kind].itemsize * count
    m.store(m.addresses(to, space, size), space, np.ascontiguousarray(values).view(np.uint8))


_MERGED = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}


def _atomic(m: Machine, i: Instruction) -> None:
    """One thread after the other."""
    *order, space, how, kind = i.modifiers
    if order not in ([], *(["relaxed", scope] for scope in ("cta", "gpu", "sys"))) or space not in _SPACES:
        raise UnknownError(i.text)
    if how not in _MERGED or kind not in WHOLE or len(i.operands) != 3:
        raise UnknownError(i.text)
    (number,) = (m.read(operand, kind) for operand in i.operands[2:])
    offset = m.addresses(i.operands[1], _SPACES[space], TYPES[kind].itemsize)
    everyone, before = m.lanes, np.zeros(len(m.lanes), TYPES[kind])
    for n in range(len(everyone)):
        m.lanes = everyone[n : n + 1]
        held = m.load(offset[n : n + 1], _SPACES[space], TYPES[kind].itemsize).view(TYPES[kind])[:, 0]
        before[n] = held[0]
        merged = np.asarray(_MERGED[how](held, number[n : n + 1]))
        m.store(offset[n : n + 1], _SPACES[space], merged.view(np.uint8)[None])
    m.lanes = everyone
    m.write(i.operands[0], before, kind)


def _everyone(m: Machine, i: Instruction, mask: Operand) -> tuple[int, int]:
    """Whole warps, as the mask must say, too."""
    if (m.read(mask, "b32") != 0xFFFFFFFF).any():
        raise UnknownError(i.text)
    return m.warps(i.text)


def _shuffle(m: Machine, i: Instruction) -> None:
    if len(i.modifiers) != 3 or i.modifiers[0] != "sync" or i.modifiers[2] != "b32" or len(i.operands) != 5:
        raise UnknownError(i.text)
    shape = _everyone(m, i, i.operands[4])
    values, by, clamp = (m.read(o, "b32").reshape(shape).astype(np.int64) for o in i.operands[1:4])
    lane, how = np.arange(WARP), i.modifiers[1]
    by, segment, bound = by & 31, clamp >> 8 & 31, clamp & 31
    most = lane & segment | bound & ~segment
    if how == "up":
        source = lane - by
        inside = source >= most
    elif how == "down":
        source = lane + by
        inside = source <= most
    elif how in ("bfly", "idx"):
        source = lane ^ by if how == "bfly" else lane & segment | by & ~segment
        inside = source <= most
    else:
        raise UnknownError(i.text)
    result = np.take_along_axis(values, np.where(inside, source, lane), 1)
    to = i.operands[0]
    if isinstance(to, Both):
        m.write(to.second, inside.reshape(-1), "pred")
        to = to.first
    m.write(to, result.reshape(-1).astype(np.uint32), "b32")


_REDUCED = {**_MERGED, "xor": np.bitwise_xor}


def _reduce(m: Machine, i: Instruction) -> None:
    sync, how, kind = i.modifiers
    bits = how in ("and", "or", "xor")
    if sync != "sync" or how not in _REDUCED or kind not in ({"b32"} if bits else {"u32", "s32"}):
        raise UnknownError(i.text)
    values = m.read(i.operands[1], kind).reshape(_everyone(m, i, i.operands[2]))
    result = _REDUCED[how].reduce(values, axis=1, keepdims=True)
    m.write(i.operands[0], np.repeat(result, WARP, 1).reshape(-1).astype(TYPES[kind]), kind)


def _vote(m: Machine, i: Instruction) -> None:
    """`ballot`: a bit of each thread."""
    if i.modifiers != ("sync", "ballot", "b32") or len(i.operands) != 3:
        raise UnknownError(i.text)
    said = m.read(i.operands[1], "pred").reshape(_everyone(m, i, i.operands[2]))
    found = (said.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(1, dtype=np.uint32)
    m.write(i.operands[0], found.repeat(WARP), "b32")


def _copy(m: Machine, i: Instruction) -> None:
    """`cp.async`: what is copied is written when the thread has waited for it, not sooner."""
    if i.modifiers == ("async", "commit_group"):
        m.close("copies")
    elif i.modifiers == ("async", "wait_group"):
        m.wait("copies", groups_left(i))
    elif i.modifiers in (("async", "cg", "shared", "global"), ("async", "ca", "shared", "global")):
        _start_copy(m, i)
    else:
        raise UnknownError(i.text)


def groups_left(i: Instruction) -> int:
    if len(i.operands) != 1 or not isinstance(i.operands[0], Immediate):
        raise UnknownError(i.text)
    return int(i.operands[0].text)


def _start_copy(m: Machine, i: Instruction) -> None:
    to, source, length, *some = i.operands
    if not isinstance(length, Immediate) or int(length.text, 0) not in (4, 8, 16) or len(some) > 1:
        raise UnknownError(i.text)
    size = int(length.text, 0)
    at = m.addresses(to, "shared", size)
    used = m.read(some[0], "u32") if some else np.full(len(m.lanes), size)
    if not np.isin(used, (0, size)).all():
        raise UnknownError(i.text)
    everyone, values = m.lanes, np.zeros((len(m.lanes), size), np.uint8)
    m.lanes = everyone[used > 0]
    values[used > 0] = m.load(m.addresses(source, "global", size), "global", size)
    m.lanes = everyone
    m.start("copies", everyone, lambda now: m.store(at[now], "shared", values[now]))


INSTRUCTIONS: dict[str, Run] = {
    "ld": _load, "st": _store, "atom": _atomic, "shfl": _shuffle, "redux": _reduce, "vote": _vote, "cp": _copy,
}  # fmt: skip
