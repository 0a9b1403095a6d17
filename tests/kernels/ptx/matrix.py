"""Matrix instructions of a warp: `ldmatrix`, `stmatrix`, `mma.sync` (PTX ISA).

Products are summed in float64 and rounded to float32 once; a GPU's sums err more. Sums of int8 are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import numbers
from .arithmetic import Run, Values
from .machine import WARP, Machine
from .movement import numbers_of
from .parse import Instruction, Operand, UnknownError

_LANE = np.arange(WARP)
GROUP, WITHIN = _LANE // 4, _LANE % 4
"""Of a thread in its warp: the row, or column, of fragments that it holds; which four of it."""


def _rows(m: Machine, i: Instruction, at: Operand) -> tuple[int, bool, int]:
    """Matrices, whether transposed, warps."""
    sync, aligned, shape, count, *rest = i.modifiers
    if (sync, aligned, shape) != ("sync", "aligned", "m8n8") or count not in ("x1", "x2", "x4"):
        raise UnknownError(i.text)
    if rest not in (["shared", "b16"], ["trans", "shared", "b16"]):
        raise UnknownError(i.text)
    return int(count[1]), rest[0] == "trans", m.warps(i.text)[0]


def _row_lanes(m: Machine, matrices: int) -> NDArray[np.intp]:
    """The threads that bring addresses: eight a matrix."""
    return m.lanes.reshape(-1, WARP)[:, : 8 * matrices].reshape(-1)


def _load_matrix(m: Machine, i: Instruction) -> None:
    to, source = i.operands
    count, transposed, warps = _rows(m, i, source)
    everyone, m.lanes = m.lanes, _row_lanes(m, count)
    found = m.load(m.addresses(source, "shared", 16), "shared", 16)
    m.lanes = everyone
    tiles = np.ascontiguousarray(found).view(np.uint16).reshape(warps, count, 8, 8)
    if transposed:
        tiles = tiles.swapaxes(2, 3)
    pairs = np.stack([tiles[:, :, GROUP, 2 * WITHIN + half] for half in (0, 1)], -1)
    words = np.ascontiguousarray(pairs).view(np.uint32)[..., 0]
    for n, part in enumerate(numbers_of(i, to, count)):
        m.write(part, words[:, n].reshape(-1), "b32")


def _store_matrix(m: Machine, i: Instruction) -> None:
    to, source = i.operands
    count, transposed, warps = _rows(m, i, to)
    tiles = np.zeros((warps, count, 8, 8), np.uint16)
    for n, part in enumerate(numbers_of(i, source, count)):
        assert part is not None
        words = m.read(part, "b32").reshape(warps, WARP)
        for half in (0, 1):
            tiles[:, n, GROUP, 2 * WITHIN + half] = words >> np.uint32(16 * half) & 0xFFFF
    if transposed:
        tiles = tiles.swapaxes(2, 3)
    everyone, m.lanes = m.lanes, _row_lanes(m, count)
    rows = np.ascontiguousarray(tiles).reshape(-1, 8).view(np.uint8)
    m.store(m.addresses(to, "shared", 16), "shared", rows)
    m.lanes = everyone


def decoded(bits: Values, kind: str) -> NDArray[np.float64]:
    """Unsigned words of one number each -> the numbers; int8 likewise, which float64 sums exactly."""
    if kind == "bf16":
        return numbers.from_bf16(bits.astype(np.uint16)).astype(np.float64)
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    if kind == "e4m3":
        return numbers.from_e4m3(bits.astype(np.uint8))
    if kind == "s8":
        return bits.astype(np.uint8).view(np.int8).astype(np.float64)
    raise UnknownError(kind)


def fragments(m: Machine, parts: tuple[Operand | None, ...], bits: int) -> NDArray[np.uint32]:
    """(warps, 32, registers, numbers of a register)"""
    words = [m.read(part, "b32").reshape(-1, WARP) for part in parts if part is not None]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return np.stack(words, -1)[..., None] >> shifts & np.uint32(2**bits - 1)


def left(found: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Four registers of a left operand -> (warps, 16, K): rows, rows + 8, then the same of the second half of K."""
    each = found.shape[3]
    matrix = np.zeros((len(found), 16, 8 * each), np.uint32)
    for register in range(4):
        for n in range(each):
            column = WITHIN * each + n + 4 * each * (register // 2)
            matrix[:, GROUP + 8 * (register % 2), column] = found[:, :, register, n]
    return matrix


def _multiply(m: Machine, i: Instruction) -> None:
    known = {("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k32", "e4m3"), ("m16n8k32", "s8")}
    sync, aligned, shape, row, column, to, a, b, c = i.modifiers
    total = "s32" if a == "s8" else "f32"
    if (sync, aligned, row, column) != ("sync", "aligned", "row", "col") or a != b or (shape, a) not in known:
        raise UnknownError(i.text)
    if (to, c) != (total, total):
        raise UnknownError(i.text)
    warps, bits = m.warps(i.text)[0], 16 if shape == "m16n8k16" else 8
    result, rows, columns, before = i.operands
    x = decoded(left(fragments(m, numbers_of(i, rows, 4), bits)), a)
    found = fragments(m, numbers_of(i, columns, 2), bits)
    each = found.shape[3]
    y = np.zeros((warps, 8 * each, 8))
    for register in range(2):
        for n in range(each):
            y[:, WITHIN * each + n + 4 * each * register, GROUP] = decoded(found[:, :, register, n], a)
    product = x @ y
    old = [m.read(part, total) for part in numbers_of(i, before, 4) if part is not None]
    for n, part in enumerate(numbers_of(i, result, 4)):
        own = product[:, GROUP + 8 * (n // 2), 2 * WITHIN + n % 2].reshape(-1)
        m.write(part, summed(own, old[n], total), total)


def summed(product: NDArray[np.float64], before: Values, kind: str) -> Values:
    if kind == "s32":
        return before + product.astype(np.int64).astype(np.int32)
    return numbers.quiet((product + before).astype(np.float32))


INSTRUCTIONS: dict[str, Run] = {"ldmatrix": _load_matrix, "stmatrix": _store_matrix, "mma": _multiply}
