"""An operator whose one kernel needs more shared memory than any GPU has."""

from __future__ import annotations

from types import SimpleNamespace

import triton
import triton.language as tl

from fwopt_kernels.contract import Launch, Space, Variant, variant


@triton.jit
def _greedy(a, b, out, inner, BLOCK: tl.constexpr):
    rows, inside = tl.arange(0, BLOCK), tl.arange(0, 128)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, inner, 128):
        left = tl.load(a + rows[:, None] * inner + (start + inside)[None, :])
        right = tl.load(b + (start + inside)[:, None] * BLOCK + rows[None, :])
        total = tl.dot(left, right, total)
    tl.store(out + rows[:, None] * BLOCK + rows[None, :], total)


def _launches(format: str, chosen: Variant) -> tuple[Launch, ...]:
    signature = {"a": "*bf16", "b": "*bf16", "out": "*fp32", "inner": "i32"}
    return (Launch(_greedy, signature, {"BLOCK": chosen["BLOCK"]}, tuple(signature), chosen.options),)


GREEDY = SimpleNamespace(
    name="greedy",
    formats=("bf16",),
    space=lambda format: Space({}, default=variant(8, 6, BLOCK=128)),
    launches=_launches,
)
