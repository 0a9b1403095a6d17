"""PTX text -> instructions. Whatever is not understood is refused, never skipped.

"PTX ISA" is NVIDIA's document "Parallel Thread Execution ISA". Nothing here needs Triton or torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "u32": 32, "f32": 32, "f64": 64, "s32": 32, "u64": 64}
"""Bits of the types that registers and parameters are declared with."""


class UnknownError(Exception):
    """An instruction, a modifier or a directive that the evaluator does not know, or one that it may not execute."""


@dataclass(frozen=True)
class Register:
    name: str
    bits: int


@dataclass(frozen=True)
class Immediate:
    """`text` as written: what it means depends on the type that it is read as."""

    text: str


@dataclass(frozen=True)
class Symbol:
    """A special register, a variable in shared memory, a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Vector:
    parts: tuple[Operand | None, ...]
    """None where a number is dropped (`_`)."""


@dataclass(frozen=True)
class Address:
    base: Operand
    offset: int


@dataclass(frozen=True)
class Both:
    """`d|p`: a second result."""

    first: Operand
    second: Operand


Operand = Register | Immediate | Symbol | Vector | Address | Both


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: Register | None
    negated: bool
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Program:
    name: str
    threads: int
    parameters: dict[str, int]
    """Name -> bits, in the order of the kernel's arguments."""
    code: tuple[Instruction, ...]
    labels: dict[str, int]
    """Label -> index in `code`."""


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*\.reqntid\s+(\d+)(?:\s*,\s*1\s*,\s*1)?\s*(.*?)\{", re.S)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+\.global\s+\.align\s+\d+\s+)?([\w$]+)$")
_DECLARED = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.S)
_RANGE = re.compile(r"(%\w+)<(\d+)>$")
_LABEL = re.compile(r"([\w$]+):")
_GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]$")
_NUMBER = re.compile(r"(0[fF][0-9A-Fa-f]{8}|0[dD][0-9A-Fa-f]{16}|-?0x[0-9A-Fa-f]+U?|-?\d+U?)$")
_IGNORED = (".pragma",)


def parse(ptx: str) -> Program:
    """The one kernel of a module."""
    text = re.sub(r"//[^\n]*|^\s*\.loc\s[^\n]*", "", ptx, flags=re.M)
    found = list(_ENTRY.finditer(text))
    if len(found) != 1:
        raise UnknownError(f"a module has one kernel with .reqntid; found {len(found)}")
    name, parameters, threads, others = found[0].groups()
    if others.strip() not in ("", ".minnctapersm 1"):
        raise UnknownError(f"directives of the kernel: {others.strip()}")
    reader = _Reader()
    reader.read(text[found[0].end() :])
    return Program(name, int(threads), _parameters(parameters), tuple(reader.code), reader.labels)


def _parameters(text: str) -> dict[str, int]:
    found = {}
    for line in filter(None, (part.strip() for part in text.split(","))):
        match = _PARAMETER.match(line)
        if match is None or match[1] not in WIDTHS:
            raise UnknownError(f"parameter: {line}")
        found[match[2]] = WIDTHS[match[1]]
    return found


class _Reader:
    """One kernel's body; registers that braces declare are known inside them alone."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.scopes: list[dict[str, Register]] = [{}]
        self.ranges: dict[str, tuple[int, int]] = {}
        self.opened = 0

    def read(self, body: str) -> None:
        rest = body.strip()
        while rest:
            label = _LABEL.match(rest)
            if rest[0] == "{":
                self.opened += 1
                self.scopes.append({})
                rest = rest[1:]
            elif rest[0] == "}":
                self.scopes.pop()
                rest = rest[1:]
                if not self.scopes:
                    return
            elif label:
                if label[1] in self.labels:
                    raise UnknownError(f"label {label[1]} twice")
                self.labels[label[1]] = len(self.code)
                rest = rest[label.end() :]
            else:
                statement, _, rest = rest.partition(";")
                self._statement(" ".join(statement.split()))
            rest = rest.lstrip()
        raise UnknownError("a kernel without its last brace")

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith("."):
            if not text.startswith(_IGNORED):
                raise UnknownError(f"directive: {text}")
        elif text:
            self.code.append(self._instruction(text))

    def _declare(self, text: str) -> None:
        match = _DECLARED.match(text)
        if match is None or match[1] not in WIDTHS:
            raise UnknownError(f"directive: {text}")
        for name in (part.strip() for part in match[2].split(",")):
            many = _RANGE.match(name)
            if many:
                self.ranges[many[1]] = (int(many[2]), WIDTHS[match[1]])
            else:
                own = name if len(self.scopes) == 1 else f"{name} of block {self.opened}"
                self.scopes[-1][name] = Register(own, WIDTHS[match[1]])

    def _instruction(self, text: str) -> Instruction:
        guard = _GUARD.match(text)
        bare = text[guard.end() :] if guard else text
        opcode, _, rest = bare.partition(" ")
        name, *modifiers = opcode.split(".")
        operands = tuple(self._operand(part) for part in _split(rest, ","))
        taken = self._register(guard[2]) if guard else None
        if guard and (taken is None or taken.bits != 1):
            raise UnknownError(f"guard: {text}")
        return Instruction(text, taken, bool(guard and guard[1]), name, tuple(modifiers), operands)

    def _register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        match = re.match(r"(%[a-z]+)(\d+)$", name)
        if match and match[1] in self.ranges and int(match[2]) < self.ranges[match[1]][0]:
            return Register(name, self.ranges[match[1]][1])
        return None

    def _operand(self, text: str) -> Operand:
        register = self._register(text)
        if register is not None:
            return register
        if _NUMBER.match(text):
            return Immediate(text.rstrip("U"))
        if text.startswith("{") and text.endswith("}"):
            parts = _split(text[1:-1], ",")
            return Vector(tuple(None if part == "_" else self._operand(part) for part in parts))
        address = _ADDRESS.match(text)
        if address:
            return Address(self._operand(address[1]), int(address[2] or 0))
        if "|" in text:
            first, _, second = text.partition("|")
            return Both(self._operand(first.strip()), self._operand(second.strip()))
        if re.match(r"%?[a-zA-Z_$][\w$.]*$", text):
            return Symbol(text)
        raise UnknownError(f"operand: {text}")


def _split(text: str, at: str) -> list[str]:
    """At commas that lie in no braces."""
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char in "{[") - (char in "}]")
        if char == at and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += char
    return [*parts, part.strip()] if part.strip() else parts
