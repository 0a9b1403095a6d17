"""The stages of `benchmarks/gpu.py`, in the order in which they run: what is cheap and decides most comes first."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Session:
    """What a stage is given."""

    device: str
    """cuda or cpu: the dry run, on tiny shapes."""
    seconds: float
    """That it may take."""
    work: Path
    """A folder that all stages share."""
    before: dict[str, Result]
    """Results of the stages it needs."""

    @property
    def small(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Stage:
    target: str
    """`module:function` below this package, `Session -> Result` of plain data."""
    share: float
    """Of the time."""
    needs: tuple[str, ...] = ()
    says: str = ""


STAGES: dict[str, Stage] = {
    "machine": Stage("machine:run", 0.05, (), "GPU, driver, clocks, versions; copy bandwidth, matrix rates"),
    "first": Stage("correct:first", 0.08, ("machine",), "inline PTX, TMA and each default, once, against float64"),
    "check": Stage("check:run", 0.14, ("machine",), "every variant compiled for this GPU: what cannot run, and why"),
    "correct": Stage("correct:run", 0.1, ("check",), "a sample of variants of every operator against float64"),
    "time": Stage("times:run", 0.24, ("machine",), "kernels, searched, beside cuBLAS and torch"),
    "search": Stage("exhaustive:run", 0.1, ("machine",), "the tuner's search against an exhaustive one"),
    "profile": Stage("commands:profile", 0.07, (), "`fwopt profile --operators`"),
    "tune": Stage("commands:tune", 0.14, (), "`fwopt kernels tune` on a recorded trace"),
    "moe": Stage("moe:run", 0.08, ("machine",), "fused MoE of Qwen3-30B-A3B beside vLLM's shipped config"),
    "vllm": Stage("vllm:run", 0.1, (), "vLLM's own fused MoE, tuned in place; does vLLM take the file?"),
    "plan": Stage("commands:plan", 0.05, ("profile", "tune"), "`fwopt tune` choosing with what was measured here"),
}


def load(stage: str) -> Callable[[Session], Result]:
    module, _, name = STAGES[stage].target.partition(":")
    function: Callable[[Session], Result] = getattr(importlib.import_module(f"gpu_stages.{module}"), name)
    return function
