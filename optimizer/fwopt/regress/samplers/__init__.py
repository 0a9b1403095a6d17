"""Ways to take samples: one module a kind of bench, one line here."""

from __future__ import annotations

import importlib
from typing import cast

from fwopt.regress.samplers.base import Make

SAMPLERS: dict[str, str] = {
    "command": "fwopt.regress.samplers.command:CommandSampler",
    "kernels": "fwopt.regress.samplers.kernels:KernelsSampler",
    "simulated": "fwopt.regress.samplers.simulated:SimulatedSampler",
    "live": "fwopt.regress.samplers.live:LiveSampler",
}
"""Kind of bench -> `module:class` of a `Sampler` that takes the bench and the arms."""


def sampler_of(kind: str) -> Make:
    module, _, name = SAMPLERS[kind].partition(":")
    return cast(Make, getattr(importlib.import_module(module), name))
