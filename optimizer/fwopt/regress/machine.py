"""Which machine it is, and how fast it was from moment to moment."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import time

from fwopt.collect.machine import describe, load_words
from fwopt.errors import InputError
from fwopt.targets.cpu import cpu_facts, device_name, processor_name

PROBE_ROUNDS = 5
_HASHED = b"\0" * (1 << 20)


def probe_s() -> float:
    """Median time of a fixed piece of work of one core, some milliseconds: slower means that the machine is."""
    taken = []
    for _ in range(PROBE_ROUNDS):
        before = time.perf_counter()
        hashlib.sha256(_HASHED).digest()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def fingerprint() -> dict[str, str]:
    """Processor, cores, kernel, driver, GPU clocks, libraries, load."""
    return {"processor": processor_name(), **describe(), "load": load_words()}


def hardware() -> str:
    """Processor and cores, and the GPU where there is one: what a stored result may be compared on."""
    try:
        name = cpu_facts().get("model name", "unknown")
    except InputError:
        name = platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = describe().get("gpu")
    return device_name(name, cores) + (f" {gpu}" if gpu else "")
