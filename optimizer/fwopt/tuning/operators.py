"""What can be tuned: fwopt's own kernels, and those of engines that are installed here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fwopt.errors import InputError

if TYPE_CHECKING:
    from fwopt_kernels.contract import Operator
    from fwopt_kernels.elsewhere import Elsewhere

FOREIGN: dict[str, str] = {"vllm_fused_moe": "fwopt.tuning.vllm_moe:VLLM_FUSED_MOE"}
"""Stands in for fwopt's operator of the same end when it is named with --op."""
VLLM_PYTHON = "FWOPT_VLLM_PYTHON"


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


def home(names: Iterable[str]) -> Elsewhere | None:
    """The Python that operators are timed with: None is this one, an engine's kernels need the engine's."""
    names = set(names)
    if not names & set(FOREIGN):
        return None
    if names - set(FOREIGN):
        raise InputError(
            f"{', '.join(sorted(names & set(FOREIGN)))} is timed in vLLM's Python and the others are not; tune them in "
            "two runs"
        )
    found = vllm_python()
    if found is None:
        raise InputError(f"vLLM is not installed beside fwopt; set {VLLM_PYTHON} to the Python that has it")
    return found


def vllm_python(**environment: str) -> Elsewhere | None:
    """`$FWOPT_VLLM_PYTHON`, or this Python where it has vLLM, or None."""
    from fwopt.live.servers.executables import program
    from fwopt_kernels.elsewhere import Elsewhere

    if os.environ.get(VLLM_PYTHON):
        (python,) = program(VLLM_PYTHON, "python")
    elif importlib.util.find_spec("vllm") is not None:
        python = sys.executable
    else:
        return None
    return Elsewhere(python, ("fwopt_kernels", "fwopt"), tuple(environment.items()))


def vllm_version(there: Elsewhere) -> str:
    """Of the vLLM in that Python."""
    from fwopt_kernels.apart import Fault, ask_once

    found = ask_once(importlib.metadata.version, "vllm", timeout_s=60, elsewhere=there)
    if isinstance(found, Fault):
        raise InputError(f"{there.python}: vLLM is not installed in this Python ({found.reason}); set {VLLM_PYTHON}")
    return found
