"""Whether an engine gave its GPU memory back, asked of the NVIDIA driver; nothing to ask on other machines."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fwopt.errors import FwoptError

_WAIT_S = 60.0
_SLACK_BYTES = 256 * 2**20
"""Other processes come and go; less than this is not an engine."""


@dataclass(slots=True)
class GpuMemory:
    """Bytes in use on every GPU before a server starts, and the wait for them to be so again."""

    before: list[int] = field(default_factory=list)

    def remember(self) -> None:
        self.before = used_bytes()

    def wait_until_free(self) -> None:
        """FwoptError when memory stays taken: the next measurement would start on a smaller GPU."""
        deadline = time.monotonic() + _WAIT_S
        while taken := self._taken():
            if time.monotonic() > deadline:
                gib = max(taken.values()) / 2**30
                raise FwoptError(
                    f"GPU {', '.join(map(str, taken))}: {gib:.1f} GiB more in use than before the server started, "
                    f"{_WAIT_S:g} s after it ended; see nvidia-smi for the process that holds them"
                )
            time.sleep(0.2)

    def _taken(self) -> dict[int, int]:
        now = zip(self.before, used_bytes(), strict=False)
        return {i: used - was for i, (was, used) in enumerate(now) if used - was > _SLACK_BYTES}


def used_bytes() -> list[int]:
    """Memory in use on each GPU; empty without an NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
