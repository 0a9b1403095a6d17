"""What the machine is, and the rates that floors are computed from."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

from gpu_stages import Result, Session


def run(session: Session) -> Result:
    import torch

    from fwopt_kernels.host import describe
    from fwopt_kernels.timing import cache_bytes, time_calls

    device = session.device
    host = describe(device)
    found: Result = {**asdict(host), "python": sys.version.split()[0], "cache_bytes": cache_bytes(device)}
    found["cuda"] = torch.version.cuda
    if device == "cuda":
        query = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.total"
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
        found["nvidia_smi"] = dict(zip(query.split(","), map(str.strip, asked.stdout.split(",")), strict=False))
    size, side = (2**30, 8192) if device == "cuda" else (2**25, 512)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = time_calls([lambda: target.copy_(source)], device, 0.2)
    found["copy_bytes_per_s"] = 2 * size / copied.p50_s
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    found["bf16_flops"] = 2 * side**3 / time_calls([lambda: a @ b], device, 0.3).p50_s
    small = side if device == "cuda" else 64  # a processor has no instructions for it
    found["fp8_flops"] = _fp8_rate(a[:small, :small].contiguous(), b[:small, :small].contiguous(), device, small)
    return found


def _fp8_rate(a: Any, b: Any, device: str, side: int) -> float | str:
    import torch

    from fwopt_kernels.timing import time_calls

    one = torch.ones((), device=device)
    try:
        x, w = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        call = partial(torch._scaled_mm, x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        return 2 * side**3 / time_calls([call], device, 0.3).p50_s
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]


def as_device(machine: Result) -> Any:
    """Floors from this machine's own rates."""
    m = machine
    fp8 = m["fp8_flops"] if isinstance(m["fp8_flops"], float) else None
    return SimpleNamespace(
        bandwidth_bytes_per_s=m["copy_bytes_per_s"], bf16_flops=m["bf16_flops"], fp8_flops=fp8, name=m["name"]
    )
