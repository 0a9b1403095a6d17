"""What can be tuned: fwopt's own kernels, and those of engines that are installed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwopt_kernels.contract import Operator

FOREIGN: dict[str, str] = {"vllm_fused_moe": "fwopt.tuning.vllm_moe:VLLM_FUSED_MOE"}
"""Stands in for fwopt's operator of the same end when it is named with --op."""


def targets() -> dict[str, str]:
    """Operator name -> `module:attribute`."""
    from fwopt_kernels.registry import OPERATORS

    return {**OPERATORS, **FOREIGN}


def load_operator(name: str) -> Operator[Any]:
    from fwopt_kernels.registry import load

    return load(targets()[name])


def compiles_ahead(name: str) -> bool:
    """Engines' kernels are compiled by their own launchers."""
    return name not in FOREIGN
