"""The state of the machine that measures: whether it is quiet, and what to write down about it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fwopt.errors import FwoptError

BUSY_SHARE = 0.15
"""Of all cores, used by others while the engine is idle: beyond this, times are not those of a machine in service."""
_LOOK_S = 0.5
_WAITS = 6
_WAIT_S = 2.0


class BusyError(FwoptError):
    """The machine has other work."""


@dataclass(frozen=True, slots=True)
class Busy:
    """What the cores did for a moment."""

    share: float
    """Of all cores together."""
    top: tuple[str, ...]
    """Processes that took most of it, `name 87%` of one core."""


def look(seconds: float = _LOOK_S) -> Busy:
    """Linux: the busy share of all cores over `seconds`, and who it was."""
    before, used_before = _cpu_ticks(), _process_ticks()
    time.sleep(seconds)
    after, used_after = _cpu_ticks(), _process_ticks()
    total, idle = after[0] - before[0], after[1] - before[1]
    share = 1 - idle / total if total > 0 else 0.0
    ticks = os.sysconf("SC_CLK_TCK") * seconds
    used = {pid: (name, t - used_before.get(pid, (name, t))[1]) for pid, (name, t) in used_after.items()}
    ranked = sorted(((t, name) for name, t in used.values() if t > 0), reverse=True)[:3]
    return Busy(share, tuple(f"{name} {t / ticks:.0%}" for t, name in ranked))


def _cpu_ticks() -> tuple[int, int]:
    """(all, idle) of all cores since boot."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def _process_ticks() -> dict[int, tuple[str, int]]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # ended meanwhile
            continue
        name, _, rest = text[text.index("(") + 1 :].rpartition(")")
        fields = rest.split()
        found[int(stat.parent.name)] = (name, int(fields[11]) + int(fields[12]))
    return found


def require_quiet(allow_busy: bool, say: Callable[[str], None]) -> Busy:
    """Before a profile: refuse a busy machine, or warn where the user insists."""
    found = look()
    if found.share > BUSY_SHARE:
        words = (
            f"{found.share:.0%} of this machine's {os.cpu_count()} cores are busy ({', '.join(found.top) or 'unknown'})"
        )
        if not allow_busy:
            raise BusyError(f"{words}, so times would not be those of a quiet machine; stop that, or add --allow-busy")
        say(f"{words}: times will be off")
    return found


def wait_until_quiet(say: Callable[[str], None]) -> float:
    """Between probes: give others a few moments to end; returns the busy share that was left, said when large."""
    share = 0.0
    for attempt in range(_WAITS):
        share = look(0.15).share
        if share <= BUSY_SHARE:
            return share
        if attempt + 1 < _WAITS:
            time.sleep(_WAIT_S)
    say(f"{share:.0%} of the cores are busy with other work; measuring all the same")
    return share


def describe() -> dict[str, str]:
    """What times depend on: processor, cores, memory, kernel, driver, clocks."""
    facts = {
        "kernel": f"{platform.system()} {platform.release()}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "python": platform.python_version(),
    }
    return facts | _nvml_facts()


def _nvml_facts() -> dict[str, str]:
    """Driver, clocks, power and throttling of the first GPU; nothing where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "gpu": str(pynvml.nvmlDeviceGetName(gpu)),
            "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "sm_clock_mhz": str(pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": str(pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM)),
            "power_w": f"{pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3:.0f}",
            "throttle_reasons": hex(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
            "processes": str(len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))),
        }
    except pynvml.NVMLError as error:
        return {"gpu": f"NVML does not answer: {error}"}
    finally:
        pynvml.nvmlShutdown()


def load_words() -> str:
    one, five, _ = os.getloadavg()
    return f"load {one:.2f} (1 min), {five:.2f} (5 min)"


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
