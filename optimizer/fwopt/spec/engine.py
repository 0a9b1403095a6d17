"""Which serving engine a plan is for."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import Frozen


class EngineSpec(Frozen):
    """A serving engine and the version whose defaults and flags apply."""

    name: Literal["vllm", "sglang"] = "vllm"
    version: str = "0.24.0"
