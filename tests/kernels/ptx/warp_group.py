"""Matrix products of warp groups, `wgmma` (PTX ISA), operands in shared memory as descriptors say.

They are computed when they have been waited for, not sooner; until then their registers may not change. Fences are
taken as given: nothing here is out of order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arithmetic import Run
from .machine import SHARED_AT, WARP, Bits, Machine
from .matrix import GROUP, WITHIN, decoded, fragments, left, summed
from .movement import groups_left, numbers_of
from .parse import Immediate, Instruction, Operand, UnknownError, Vector

_TYPES = {"bf16": (16, "f32"), "f16": (16, "f32"), "e4m3": (8, "f32"), "s8": (8, "s32")}
"""Of operands -> bits, type of sums."""
_SHAPE = re.compile(r"m64n(\d+)k(\d+)$")


@dataclass(frozen=True)
class _Product:
    columns: int
    inner: int
    kind: str
    result: tuple[Operand | None, ...]
    rows: Operand
    right: Operand
    keep: Operand
    """Whether the result is added to what it was."""
    transposed: tuple[bool, bool]


@dataclass(frozen=True)
class _Given:
    """What a product takes of registers when it is started: descriptors of each warp group, `keep` of each thread."""

    left: Bits | None
    right: Bits
    keep: NDArray[np.bool_]


def _parsed(i: Instruction) -> _Product:
    mma, sync, aligned, shape, total, kind, other = i.modifiers
    match = _SHAPE.match(shape)
    if (mma, sync, aligned) != ("mma_async", "sync", "aligned") or match is None or kind != other:
        raise UnknownError(i.text)
    if kind not in _TYPES or _TYPES[kind][1] != total or int(match[2]) * _TYPES[kind][0] != 256:
        raise UnknownError(i.text)
    to, a, b, keep, *rest = i.operands
    if not all(isinstance(one, Immediate) for one in rest):
        raise UnknownError(i.text)
    flags = [int(one.text) for one in rest if isinstance(one, Immediate)]
    scales = 0 if kind == "s8" else 2
    moved = 0 if _TYPES[kind][0] == 8 else 1 if isinstance(a, Vector) else 2
    if len(flags) != scales + moved or flags[:scales] != [1] * scales or not set(flags[scales:]) <= {0, 1}:
        raise UnknownError(i.text)
    both = [False] * (2 - moved) + [bool(flag) for flag in flags[scales:]]
    columns = int(match[1])
    return _Product(columns, int(match[2]), kind, numbers_of(i, to, columns // 2), a, b, keep, (both[0], both[1]))


def _multiply(m: Machine, i: Instruction) -> None:
    product = _parsed(i)
    if m.threads % (4 * WARP) or m.warps(i.text)[0] % 4 or (m.lanes.reshape(-1, 4 * WARP)[:, 0] % (4 * WARP)).any():
        raise UnknownError(f"not all warps of a group are at {i.text}")

    given = _Given(
        None if isinstance(product.rows, Vector) else _descriptors(m, product.rows),
        _descriptors(m, product.right),
        m.read(product.keep, "pred"),
    )

    def end(now: NDArray[np.bool_]) -> None:
        if (now.reshape(-1, 4 * WARP).any(1) != now.reshape(-1, 4 * WARP).all(1)).any():
            raise UnknownError(f"a part of a warp group waits for {i.text}")
        _compute(m, product, now, given)

    m.start("products", m.lanes, end)


def _compute(m: Machine, p: _Product, now: NDArray[np.bool_], given: _Given) -> None:
    """Of the threads of whole warp groups."""
    bits, total = _TYPES[p.kind]
    groups = now.reshape(-1, 4 * WARP)[:, 0]
    if isinstance(p.rows, Vector):
        own = left(fragments(m, p.rows.parts, bits))
        x = own.reshape(-1, 64, p.inner)  # four warps' rows, in order
    else:
        assert given.left is not None
        x = _shared(m, given.left[groups], 64, p.inner, bits, p.transposed[0])
    y = _shared(m, given.right[groups], p.columns, p.inner, bits, p.transposed[1])
    product = decoded(x, p.kind) @ decoded(y, p.kind).swapaxes(1, 2)
    by_warp = product.reshape(-1, 16, p.columns)
    keep = given.keep[now]
    for n, part in enumerate(p.result):
        assert part is not None
        found = by_warp[:, GROUP + 8 * (n // 2 % 2), 8 * (n // 4) + 2 * WITHIN + n % 2].reshape(-1)
        before = m.read(part, total) if keep.any() else np.zeros(len(m.lanes), "i4" if total == "s32" else "f4")
        m.write(part, summed(found, np.where(keep, before, np.zeros_like(before)), total), total)


def _descriptors(m: Machine, operand: Operand) -> Bits:
    """One of each warp group."""
    words = m.read(operand, "b64").reshape(-1, 4 * WARP)
    if (words != words[:, :1]).any():
        raise UnknownError("threads of a warp group have several descriptors")
    return words[:, 0]


def _shared(m: Machine, descriptors: Bits, rows: int, inner: int, bits: int, transposed: bool) -> NDArray[np.uint32]:
    """(warp groups, rows, K) words of one number each, as a descriptor says where they lie."""
    found = [_offsets(int(word), rows, inner, bits // 8, transposed) for word in descriptors]
    at = np.stack(found) - SHARED_AT
    if (at < 0).any() or (at >= m.shared_bytes).any():
        raise UnknownError("a descriptor that leaves shared memory")
    program = (m.lanes.reshape(-1, 4 * WARP)[:, 0] // m.threads)[:, None, None]
    result = np.zeros(at.shape, np.uint32)
    for byte in range(bits // 8):
        result |= m.shared[program, at + byte].astype(np.uint32) << np.uint32(8 * byte)
    return result


def _offsets(descriptor: int, rows: int, inner: int, size: int, transposed: bool) -> NDArray[np.intp]:
    """Addresses in shared memory of (rows, K): the canonical layouts, whose 16-byte pieces are swizzled by address."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise UnknownError("a descriptor with a base offset")
    span = {0: 16, 1: 128, 2: 64, 3: 32}[descriptor >> 62]
    """Bytes that lie side by side."""
    row, k = np.arange(rows)[:, None], np.arange(inner)[None, :]
    along, across = (row, k) if transposed else (k, row)
    within, further = along * size % span, along * size // span
    if span == 16:
        leading, stride = (stride, leading) if transposed else (leading, stride)
    elif not transposed and (further > 0).any():
        raise UnknownError("a descriptor whose K is wider than its swizzled rows")
    at = start + within + further * leading + across % 8 * span + across // 8 * stride
    return at ^ (at >> 7 & span // 16 - 1) << 4


def _control(m: Machine, i: Instruction) -> None:
    if i.modifiers == ("wait_group", "sync", "aligned"):
        m.warps(i.text)
        m.wait("products", groups_left(i))
    elif i.modifiers == ("commit_group", "sync", "aligned"):
        m.warps(i.text)
        m.close("products")
    elif i.modifiers != ("fence", "sync", "aligned"):
        _multiply(m, i)


def _fence(m: Machine, i: Instruction) -> None:
    if i.modifiers != ("proxy", "async", "shared::cta"):
        raise UnknownError(i.text)


INSTRUCTIONS: dict[str, Run] = {"wgmma": _control, "fence": _fence}
