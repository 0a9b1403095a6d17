"""One kernel compiled for a GPU that need not be there. All that depends on Triton's version is in this file."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwopt_kernels.contract import Architecture, Launch

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    label: str
    shared_bytes: int
    """Of a block, all of it dynamic; without the 1 KiB that the driver keeps for itself since sm_90."""
    registers: int
    """Of a thread."""
    stack_bytes: int
    """Of a thread, in local memory: registers that did not fit, or arrays that are indexed at run time."""
    threads: int
    """Of a block."""
    compile_s: float


def compile_launch(launch: Launch, architecture: Architecture) -> Resources:
    """Compile, and read the cubin with the bundled cuobjdump."""
    started = time.perf_counter()
    compiled = compiled_kernel(launch, architecture)
    elapsed = time.perf_counter() - started
    registers, stack = _usage(compiled.asm["cubin"])
    threads = 32 * compiled.metadata.num_warps
    return Resources(launch.label, compiled.metadata.shared, registers, stack, threads, round(elapsed, 3))


def compiled_kernel(launch: Launch, architecture: Architecture) -> Any:
    """Triton 3.6 to 3.9: its compiled kernel, with `asm` and `metadata`, of an `ASTSource` for a `GPUTarget`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature = {name: launch.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned}
    return triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture.capability, 32),
        options=dict(launch.options),
    )


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread of the one kernel in `cubin`; spilled registers lie on the stack."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run(
            [_cuobjdump(), "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True
        )
    found = _USAGE.search(done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {done.stdout.strip()[:200]!r}")
    registers, stack, local = (int(number) for number in found.groups())
    return registers, max(stack, local)


def _cuobjdump() -> str:
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if os.access(bundled, os.X_OK) else str(triton.knobs.nvidia.cuobjdump.path)
