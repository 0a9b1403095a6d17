"""The processor of this machine as a device to plan for: what Linux says of it, and a measured memory bandwidth."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from functools import cache
from pathlib import Path

import numpy as np

from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.spec.hardware import DeviceSpec

_COPY_BYTES = 256 * 2**20
_COPIES = 7
FLOPS_PER_CYCLE = {"amx_bf16": 2048, "avx512_bf16": 128, "avx512f": 64, "fma": 32, "asimd": 16}
"""Dense 16-bit (or, without such units, 32-bit) operations a cycle and core, by the best instruction set: one AMX tile
product of 16 x 16 x 32 in 16 cycles; two 512-bit units; two 256-bit units; two 128-bit units."""
_FALLBACK_FLOPS_PER_CYCLE = 8
_FALLBACK_HZ = 3e9


@cache
def this_processor() -> DeviceSpec:
    """The cores that this process may use. The bandwidth is measured once a machine and kept, so that equal runs have
    equal inputs."""
    facts = cpu_facts()
    cores = _cores()
    name = device_name(facts.get("model name", "unknown processor"), cores)
    bandwidth, how = _bandwidth(name)
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    best = next((flag for flag in FLOPS_PER_CYCLE if flag in flags), None)
    hertz = _hertz(facts)
    flops = cores * hertz * (FLOPS_PER_CYCLE[best] if best else _FALLBACK_FLOPS_PER_CYCLE)
    return DeviceSpec(
        kind="cpu",
        name=name,
        full_name=_full_name(facts, cores),
        memory_bytes=_memory_bytes(),
        bandwidth_bytes_per_s=bandwidth,
        bf16_flops=flops,
        link_bytes_per_s=bandwidth,
        fabric="shared memory",
        source=f"/proc/cpuinfo and /proc/meminfo; bandwidth {how}; arithmetic: {hertz / 1e9:.1f} GHz, "
        f"{best or 'no vector unit known'}",
    )


def processor_name() -> str:
    """For a reader; nothing is measured."""
    return _full_name(cpu_facts(), _cores()) if Path("/proc/cpuinfo").exists() else platform.processor()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _full_name(facts: dict[str, str], cores: int) -> str:
    return f"{facts.get('model name', 'unknown processor')}, {cores} cores"


def device_name(model_name: str, cores: int) -> str:
    """`cpu-intel-xeon-processor-2c`: the same on every machine of the type."""
    plain = re.sub(r"\((r|tm|c)\)|@.*$|\bcpu\b", " ", model_name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"
    return f"cpu-{slug}-{cores}c"


def cpu_facts() -> dict[str, str]:
    """Fields of the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"/proc/cpuinfo: cannot be read ({error.strerror}), so this processor is unknown; "
            "name GPUs to plan for: add for example --hardware h200:8"
        ) from None
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _hertz(facts: dict[str, str]) -> float:
    limit = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    try:
        return float(limit.read_text()) * 1e3
    except (OSError, ValueError):
        return float(facts["cpu MHz"]) * 1e6 if "cpu MHz" in facts else _FALLBACK_HZ


def _memory_bytes() -> int:
    """What the kernel has, or the limit of this process's control group."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise InputError("/proc/meminfo: has no MemTotal, so this machine's memory is unknown; name GPUs by --hardware")
    total = int(found[1]) * 1024
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control groups, or "max"
        return total


def _bandwidth(name: str) -> tuple[float, str]:
    """(bytes per second that a copy reads and writes, how that is known)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = home / "fwopt" / f"{name}.json"
    try:
        return float(json.loads(kept.read_text(encoding="utf-8"))["copy_bytes_per_s"]), "of a copy, measured before"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or not readable: measured now
    found = float(f"{_copy_bytes_per_s():.2g}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(kept) as path:
            path.write_text(json.dumps({"copy_bytes_per_s": found}) + "\n", encoding="utf-8")
    except (OSError, InputError):
        return found, "of a copy, measured now (the cache folder cannot be written)"
    return found, "of a copy, measured before"


def _copy_bytes_per_s() -> float:
    """Best of several copies by all cores, larger than any cache but those of whole-socket machines."""
    from concurrent.futures import ThreadPoolExecutor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    source = np.ones(_COPY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    parts = [slice(i * _COPY_BYTES // cores, (i + 1) * _COPY_BYTES // cores) for i in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(_COPIES):
            started = time.perf_counter()
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))
            best = min(best, time.perf_counter() - started)
    return 2 * _COPY_BYTES / best
