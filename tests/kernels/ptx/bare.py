"""A few instructions executed by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arithmetic, conversions, integers, matrix, movement, warp_group
from .arithmetic import Run
from .machine import Machine
from .memory import Memory
from .parse import parse

INSTRUCTIONS: dict[str, Run] = {
    **arithmetic.INSTRUCTIONS, **integers.INSTRUCTIONS, **movement.INSTRUCTIONS, **matrix.INSTRUCTIONS,
    **warp_group.INSTRUCTIONS, **conversions.INSTRUCTIONS,
}  # fmt: skip
RANDOM = np.random.default_rng(7)
EDGES = np.array([0, 1, 0x7F, 0x80, 0xFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)


def bits(*values: float) -> np.ndarray:
    return np.array(values, np.float32).view(np.uint32)


def words(count: int = 256) -> np.ndarray:
    """Random, and all pairs of edges at their beginning when taken in the same order twice."""
    return np.concatenate([EDGES, RANDOM.integers(0, 2**32, count - len(EDGES), np.uint32)])


def run(code: str, *columns: Any, threads: int = 32, apart: bool = False, shared_bytes: int = 1024) -> np.ndarray:
    """`code` in as many threads as columns are long: %r1, %r2, ... are their numbers, %r0 is each thread's result."""
    words = [np.ascontiguousarray(column).astype(np.uint32) for column in columns]
    count = len(words[0]) if words else threads
    programs = -(-count // threads)
    filled = [np.resize(word, programs * threads) for word in words]
    memory = Memory([np.zeros(4 * programs * threads, np.uint8), *(word.view(np.uint8) for word in filled)])
    names = ",\n".join(f".param .u64 .ptr .global .align 1 p{n}" for n in range(len(filled) + 1))
    loads = "".join(
        f"ld.param.b64 %rd2, [p{n + 1}];\nadd.s64 %rd2, %rd2, %rd1;\nld.global.b32 %r{n + 1}, [%rd2];\n"
        for n in range(len(filled))
    )
    ptx = f"""
.visible .entry tested(
{names}
)
.reqntid {threads}
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<30>;
    .reg .b64 %rd<9>;
    mov.u32 %r20, %ctaid.x;
    mov.u32 %r21, %tid.x;
    mad.lo.s32 %r22, %r20, {threads}, %r21;
    mul.wide.u32 %rd1, %r22, 4;
    {loads}
    {code}
    ld.param.b64 %rd2, [p0];
    add.s64 %rd2, %rd2, %rd1;
    st.global.b32 [%rd2], %r0;
    ret;
}}
"""
    Machine(parse(ptx), memory, memory.addresses(), (programs, 1, 1), shared_bytes, apart).run(INSTRUCTIONS)
    start = memory.starts[0]
    return memory.bytes[start : start + 4 * count].view(np.uint32)
