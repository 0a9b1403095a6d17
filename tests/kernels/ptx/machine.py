"""Executes a parsed kernel with numpy: all threads of all its programs at once. It is no GPU.

Threads that wait at the lowest instruction go first, so threads that parted meet again where their ways do. Programs
share nothing but global memory. Numbers lie in registers as bits. What a GPU would leave to chance is refused: a
shuffle without all of its warp, a barrier that some threads never reach, an access outside of what there is or to a
misaligned address. Or it is made to show: shared memory and registers begin as rubbish,
and what is copied asynchronously arrives at the last moment allowed. With `apart` a warp runs until it must wait for
others, instead of all in step: a barrier that is missing shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .memory import GLOBAL_AT, Memory
from .parse import Address, Immediate, Instruction, Operand, Program, Register, Symbol, UnknownError, Vector
from .types import TYPES, immediate

Bits = NDArray[np.uint64]
Lanes = NDArray[np.intp]
WARP = 32
SHARED_AT = 1024
"""Address of a program's shared memory, in bytes."""
RUBBISH = 0xA5A5A5A5A5A5A5A5


@dataclass
class Pending:
    """What threads have started and not yet waited for."""

    lanes: Lanes
    group: NDArray[np.intp]
    end: Callable[[NDArray[np.bool_]], None]
    """For some of the threads."""


@dataclass
class Machine:
    """`parameters`: bits of the kernel's arguments, in order. `shared_bytes`: of a program."""

    program: Program
    memory: Memory
    parameters: list[int]
    grid: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    apart: bool = False
    registers: dict[str, Bits] = field(default_factory=dict)
    pending: dict[str, list[Pending]] = field(default_factory=dict)
    """Copies, and products of warp groups, under way."""
    groups: dict[str, NDArray[np.intp]] = field(default_factory=dict)
    """Groups of those that each thread has closed."""

    def __post_init__(self) -> None:
        self.programs = math.prod(self.grid)
        self.threads = self.program.threads
        count = self.programs * self.threads
        if self.threads % WARP:
            raise UnknownError(f"{self.threads} threads a program")
        self.shared = np.full((self.programs, self.shared_bytes), 0xA5, np.uint8)
        self.lanes: Lanes = np.arange(count)
        self.at = np.zeros(count, np.intp)
        self.ended = np.zeros(count, np.bool_)
        self.waiting = np.zeros(count, np.bool_)
        self.parked = np.zeros(count, np.bool_)
        if len(self.parameters) != len(self.program.parameters):
            raise UnknownError(f"{len(self.parameters)} arguments for {len(self.program.parameters)} parameters")
        self.arguments = dict(zip(self.program.parameters, self.parameters, strict=True))
        self.everyone: Lanes = np.arange(count)

    def run(self, instructions: Mapping[str, Callable[[Machine, Instruction], None]]) -> None:
        code, stops = self.program.code, set(self.program.labels.values())
        while not self.ended.all():
            chosen = self._chosen()
            at = int(self.at[chosen[0]])
            while True:
                if at >= len(code):
                    raise UnknownError("the end of the kernel without ret")
                instruction = code[at]
                chosen = self._together(instruction, at, chosen)
                if not len(chosen):
                    break
                self.lanes = self._guarded(instruction, chosen)
                if instruction.name in _CONTROL:
                    self.at[chosen] = at + 1
                    _CONTROL[instruction.name](self, instruction, chosen)
                    break
                if instruction.name not in instructions:
                    raise UnknownError(instruction.text)
                if len(self.lanes):
                    with np.errstate(all="ignore"):
                        instructions[instruction.name](self, instruction)
                at += 1
                if at in stops:
                    self.at[chosen] = at
                    break

    def _chosen(self) -> Lanes:
        """Threads at the lowest instruction; with `apart` of the first warps that can go on."""
        ready = ~self.ended & ~self.waiting & ~self.parked
        if not ready.any():
            self._open_barriers()
            return self._chosen()
        warp = self.everyone % self.threads // WARP
        order = self.at + (warp * len(self.program.code) if self.apart else 0)
        return np.flatnonzero(ready & (order == order[ready].min()))

    def _together(self, instruction: Instruction, at: int, lanes: Lanes) -> Lanes:
        """Those that may execute it: for some instructions threads wait until all of their warp, or warp group, have
        come."""
        if instruction.name not in _TOGETHER:
            return lanes
        here = self.parked & (self.at == at)
        here[lanes] = True
        unit = 4 * WARP if instruction.name == "wgmma" and self.threads % (4 * WARP) == 0 else WARP
        whole = here.reshape(-1, unit).all(1).repeat(unit)
        self.parked[here] = ~whole[here]
        self.at[here] = at
        return np.flatnonzero(here & whole)

    def _open_barriers(self) -> None:
        """Of all programs: all of a program's threads wait at one barrier, or none is left."""
        if self.parked.any():
            text = self.program.code[self.at[self.parked][0]].text
            raise UnknownError(f"not all threads of a warp are at {text}")
        for one in range(self.programs):
            own = slice(one * self.threads, (one + 1) * self.threads)
            if not self.ended[own].all() and (self.ended[own].any() or np.ptp(self.at[own])):
                raise UnknownError("threads of a program wait at several barriers, or for some that have ended")
        self.waiting[:] = False

    def _guarded(self, instruction: Instruction, lanes: Lanes) -> Lanes:
        if instruction.guard is None:
            return lanes
        self.lanes = lanes
        return lanes[self.read(instruction.guard, "pred") ^ instruction.negated]

    def read(self, operand: Operand, kind: str) -> NDArray[np.generic]:
        """The threads' numbers, read as that type."""
        dtype = TYPES[kind]
        if isinstance(operand, Register):
            if operand.bits < dtype.itemsize * 8 and kind != "pred":
                raise UnknownError(f"{operand.name} of {operand.bits} bits read as {kind}")
            self._declare(operand)
            bits = self.registers[operand.name][self.lanes]
        elif isinstance(operand, Immediate):
            bits = np.full(len(self.lanes), immediate(operand.text, dtype), np.uint64)
        elif isinstance(operand, Symbol):
            bits = self._symbol(operand.name)
        elif isinstance(operand, Vector):  # packed: the first number lowest
            width = dtype.itemsize * 8 // len(operand.parts)
            bits = np.zeros(len(self.lanes), np.uint64)
            for i, part in enumerate(operand.parts):
                if part is None:
                    raise UnknownError("a dropped number is read")
                bits |= self.read(part, f"b{width}").astype(np.uint64) << np.uint64(i * width)
        else:
            raise UnknownError(f"operand {operand}")
        if kind == "pred":
            return bits != 0
        return bits.astype(f"u{dtype.itemsize}").view(dtype)

    def _symbol(self, name: str) -> Bits:
        lanes = self.lanes.astype(np.uint64)
        program, thread = lanes // np.uint64(self.threads), lanes % np.uint64(self.threads)
        across, down, _ = (np.uint64(n) for n in self.grid)
        known = {
            "%tid.x": thread, "%laneid": thread % np.uint64(WARP), "%ctaid.x": program % across,
            "%ctaid.y": program // across % down, "%ctaid.z": program // (across * down),
            "%ntid.x": thread * 0 + self.threads, "%nctaid.x": thread * 0 + across, "%nctaid.y": thread * 0 + down,
            "global_smem": thread * 0 + SHARED_AT,
        }  # fmt: skip
        if name not in known:
            raise UnknownError(name)
        return known[name].astype(np.uint64)

    def write(self, operand: Operand | None, values: NDArray[np.generic], kind: str) -> None:
        """The threads' results. A register may be wider than its number, which is then extended, by its sign if any."""
        if operand is None:
            return
        dtype = TYPES[kind]
        if isinstance(operand, Vector):
            width = dtype.itemsize * 8 // len(operand.parts)
            bits = np.ascontiguousarray(values, dtype).view(f"u{dtype.itemsize}").astype(np.uint64)
            for i, part in enumerate(operand.parts):
                self.write(part, (bits >> np.uint64(i * width)).astype(f"u{width // 8}"), f"b{width}")
            return
        if not isinstance(operand, Register) or operand.bits < (1 if kind == "pred" else dtype.itemsize * 8):
            raise UnknownError(f"{kind} is written to {operand}")
        if (kind == "pred") != (operand.bits == 1):
            raise UnknownError(f"{kind} is written to {operand}")
        self._declare(operand)
        numbers = np.ascontiguousarray(values).astype(dtype, copy=False)
        if dtype.kind == "i":
            bits = numbers.astype(np.int64).view(np.uint64) & np.uint64(2**operand.bits - 1)
        else:
            bits = (numbers if dtype.kind == "b" else numbers.view(f"u{dtype.itemsize}")).astype(np.uint64)
        self.registers[operand.name][self.lanes] = bits

    def _declare(self, register: Register) -> None:
        """Before it is written it holds rubbish; compilers read it where nothing depends on it."""
        if register.name not in self.registers:
            self.registers[register.name] = np.full(len(self.everyone), RUBBISH, np.uint64)

    def addresses(self, operand: Operand, space: str, size: int) -> NDArray[np.intp]:
        """Offsets into global memory, or into a program's shared memory, of accesses of `size` bytes."""
        if not isinstance(operand, Address):
            raise UnknownError(f"address {operand}")
        wide = "b64" if space == "global" else "b32"
        base = self.read(operand.base, wide).astype(np.int64) + operand.offset
        offset = (base - (GLOBAL_AT if space == "global" else SHARED_AT)).astype(np.intp)
        most = len(self.memory.bytes) if space == "global" else self.shared_bytes
        if (base % size).any():
            raise UnknownError(f"a misaligned access of {size} bytes in {space} memory")
        if (offset < 0).any() or (offset + size > most).any():
            raise UnknownError(f"an access outside of {space} memory")
        if space == "global" and not self.memory.known[[offset, offset + size - 1]].all():
            raise UnknownError("an access outside of all buffers")
        return offset

    def load(self, offset: NDArray[np.intp], space: str, size: int) -> NDArray[np.uint8]:
        """(threads, size) bytes."""
        if space == "global":
            return self.memory.bytes[offset[:, None] + np.arange(size)]
        return self.shared[self.lanes[:, None] // self.threads, offset[:, None] + np.arange(size)]

    def store(self, offset: NDArray[np.intp], space: str, values: NDArray[np.uint8]) -> None:
        at = offset[:, None] + np.arange(values.shape[1])
        if space == "global":
            self.memory.bytes[at] = values
        else:
            self.shared[self.lanes[:, None] // self.threads, at] = values

    def start(self, what: str, lanes: Lanes, end: Callable[[NDArray[np.bool_]], None]) -> None:
        self.pending.setdefault(what, []).append(Pending(lanes, self._closed(what)[lanes], end))

    def close(self, what: str) -> None:
        self._closed(what)[self.lanes] += 1

    def _closed(self, what: str) -> NDArray[np.intp]:
        return self.groups.setdefault(what, np.zeros(len(self.everyone), np.intp))

    def wait(self, what: str, most: int) -> None:
        """Until all groups have ended that these threads closed, but for the last `most`."""
        waiting = np.zeros(len(self.everyone), np.bool_)
        waiting[self.lanes] = True
        everyone, closed, left = self.lanes, self._closed(what), []
        for one in self.pending.get(what, []):
            now = waiting[one.lanes] & (one.group >= 0) & (one.group < closed[one.lanes] - most)
            if now.any():
                self.lanes = one.lanes[now]
                one.end(now)
                one.group[now] = -1
            if (one.group >= 0).any():
                left.append(one)
        self.pending[what], self.lanes = left, everyone

    def warps(self, text: str) -> tuple[int, int]:
        """The shape in which numbers of whole warps lie; `text` names what needs them."""
        lanes = self.lanes.reshape(-1, WARP) if len(self.lanes) % WARP == 0 else None
        if lanes is None or (lanes != lanes[:, :1] // WARP * WARP + np.arange(WARP)).any():
            raise UnknownError(f"not all threads of a warp are at {text}")
        return lanes.shape[0], WARP


def _branch(machine: Machine, instruction: Instruction, chosen: Lanes) -> None:
    (target,) = instruction.operands
    if instruction.modifiers not in ((), ("uni",)) or not isinstance(target, Symbol):
        raise UnknownError(instruction.text)
    if target.name not in machine.program.labels:
        raise UnknownError(instruction.text)
    if (
        instruction.modifiers
        and (np.isin(chosen // WARP, machine.lanes // WARP) != np.isin(chosen, machine.lanes)).any()
    ):
        raise UnknownError(f"threads of a warp part at {instruction.text}")
    machine.at[machine.lanes] = machine.program.labels[target.name]


def _end(machine: Machine, instruction: Instruction, chosen: Lanes) -> None:
    if instruction.modifiers or instruction.operands:
        raise UnknownError(instruction.text)
    machine.ended[machine.lanes] = True


def _barrier(machine: Machine, instruction: Instruction, chosen: Lanes) -> None:
    if instruction.modifiers == ("warp", "sync") and instruction.operands == (Immediate("-1"),):
        return
    if instruction.modifiers != ("sync",) or instruction.operands != (Immediate("0"),):
        raise UnknownError(instruction.text)
    machine.warps(instruction.text)
    machine.waiting[machine.lanes] = True


_CONTROL = {"bra": _branch, "ret": _end, "bar": _barrier}
_TOGETHER = {"bar", "shfl", "redux", "vote", "ldmatrix", "stmatrix", "mma", "wgmma"}
