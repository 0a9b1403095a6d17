"""Operators that go wrong: in shared memory, in the compiler, while running, in what they compute."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.contract import Expected, Launch, Space, Variant, Work, variant


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


def _killing(format: str, chosen: Variant) -> tuple[Launch, ...]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return ()


KILLS_ITS_COMPILER = SimpleNamespace(
    name="killer", formats=("bf16",), space=lambda format: Space({}, default=variant(4, 1)), launches=_killing
)
"""As a crash in LLVM would."""


class _Doubling:
    """values * 2, on a processor; its variants misbehave as their constant WAY says."""

    name = "doubling"
    formats = ("fp32",)
    dimensions = ("rows",)

    def space(self, format: str) -> Space:
        return Space({"WAY": (0, 1, 2, 3, 4), "num_warps": (4,)}, default=variant(4, 1, WAY=0))

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        return Work(8 * shape["rows"], 0)

    def case(self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu") -> Any:
        values = torch.randn(shape["rows"], generator=torch.Generator().manual_seed(seed))
        return _DoublingCase(values, torch.full_like(values, float("nan")))

    def reference(self, case: Any) -> dict[str, Expected]:
        return {"out": Expected(case.values.double() * 2, rtol=1e-6)}

    def fallback(self, case: Any) -> None:
        case.out.copy_(case.values * 2)

    def run(self, case: Any, chosen: Variant) -> None:
        way = chosen["WAY"]
        if way == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if way == 2:
            time.sleep(60)
        if way == 3:
            raise RuntimeError("first line\n    out of resources: shared memory")
        case.out.copy_(case.values * (2 if way == 0 else 3))


@dataclass
class _DoublingCase:
    values: Tensor
    out: Tensor

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.double()}


DOUBLING = _Doubling()
