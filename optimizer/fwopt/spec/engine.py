"""Which serving engine a plan is for."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import Frozen

EngineName = Literal["vllm", "sglang", "llamacpp", "fwopt"]
"""`llamacpp`: llama-server; `fwopt`: the reference engine."""


class EngineSpec(Frozen):
    """A serving engine and the version whose defaults and flags apply."""

    name: EngineName = "vllm"
    version: str = "0.24.0"
