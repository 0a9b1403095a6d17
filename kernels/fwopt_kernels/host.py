"""Where kernels run: the device by name, and the versions that compiled them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """Where variants are timed."""

    device: str
    """cuda or cpu"""
    name: str
    """As the driver reports it; of a processor, what the machine calls it."""
    arch: str | None
    """For example sm_90; None on a processor."""
    triton: str
    torch: str


def describe(device: str) -> Host:
    """In a child: asking a GPU for its name takes memory on it."""
    import torch
    import triton

    if device == "cpu":
        return Host(device, processor(), None, triton.__version__, torch.__version__)
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    return Host(device, name, f"sm_{major}{minor}", triton.__version__, torch.__version__)


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
