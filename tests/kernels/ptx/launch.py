"""A kernel's launches compiled for sm_90 and executed by `machine.py`, in place of Triton's own way to a GPU."""

from __future__ import annotations

import contextlib
import inspect
import struct
from collections.abc import Iterator
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from fwopt_kernels.compiler import compiled_kernel
from fwopt_kernels.contract import ARCHITECTURES, Launch

from .bare import INSTRUCTIONS
from .machine import Machine
from .memory import Memory
from .parse import Program, UnknownError, parse

_POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_COMPILED: dict[Any, tuple[Program, int]] = {}


@contextlib.contextmanager
def executed(*, apart: bool = False) -> Iterator[list[str]]:
    """Inside, Triton's kernels are launched here; gives the names of those that were."""
    before, names = JITFunction.run, []

    def run(self: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool = False, **named: Any) -> None:
        assert not warmup
        launch(self, grid, *arguments, apart=apart, **named)
        names.append(self.fn.__name__)

    JITFunction.run = run
    try:
        yield names
    finally:
        JITFunction.run = before


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, apart: bool = False, **named: Any) -> None:
    """As `kernel[grid](...)`: tensors on the CPU are read, and written, in place."""
    names = kernel.arg_names
    options = {name: value for name, value in named.items() if name not in names}
    bound = inspect.signature(kernel.fn).bind(*arguments, **{n: v for n, v in named.items() if n in names})
    bound.apply_defaults()
    tensors = [value for value in bound.arguments.values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    buffers = [torch.tensor([], dtype=torch.uint8).set_(one).numpy() for one in storages.values()]
    memory = Memory(buffers)
    starts = dict(zip(storages, memory.addresses(), strict=True))
    signature, constants, aligned, bits = {}, {}, [], []
    for parameter in kernel.params:
        value = bound.arguments[parameter.name]
        value = getattr(value, "value", value) if not isinstance(value, torch.Tensor) else value
        free = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            number = starts[storage.data_ptr()] + value.storage_offset() * value.element_size()
            kind = _POINTERS[value.dtype]
        elif parameter.is_constexpr or value is None or (type(value) is int and value == 1 and free):
            constants[parameter.name] = value
            continue
        else:
            kind, number = _scalar(value)
        signature[parameter.name] = kind
        if kind != "fp32" and number % 16 == 0 and free:
            aligned.append(parameter.name)
        bits.append(number & (2**64 - 1))
    program, shared = _compiled(Launch(kernel, signature, constants, tuple(aligned), options))
    scratch = len(program.parameters) - len(bits)  # Triton's own, which these kernels do not use
    if not 0 <= scratch <= 2:
        raise UnknownError(f"{len(program.parameters)} parameters for {len(bits)} arguments")
    machine = Machine(program, memory, bits + [0] * scratch, (*grid, 1, 1)[:3], shared, apart)
    machine.run(INSTRUCTIONS)
    for buffer, start in zip(buffers, memory.starts, strict=True):
        buffer[:] = memory.bytes[start : start + len(buffer)]


def _scalar(value: Any) -> tuple[str, int]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UnknownError(f"argument {value!r}")
    if isinstance(value, float):
        return "fp32", int.from_bytes(struct.pack("<f", value), "little")
    return ("i32" if -(2**31) <= value < 2**31 else "i64"), value


def _compiled(launch: Launch) -> tuple[Program, int]:
    key = (
        id(launch.kernel), *(tuple(sorted(one.items(), key=str)) for one in (launch.signature, launch.constants)),
        launch.aligned, tuple(sorted(launch.options.items())),
    )  # fmt: skip
    if key not in _COMPILED:
        compiled = compiled_kernel(launch, ARCHITECTURES["sm_90"])
        _COMPILED[key] = parse(compiled.asm["ptx"]), compiled.metadata.shared
    return _COMPILED[key]
