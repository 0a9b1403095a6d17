"""Global memory: buffers with room between them that nobody may touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GLOBAL_AT = 1 << 40
"""Address of all of it, in bytes."""
_ROOM = 4096
"""Bytes between two buffers."""


class Memory:
    def __init__(self, buffers: list[NDArray[np.uint8]]) -> None:
        sizes = [-(-len(b) // 256) * 256 + _ROOM for b in buffers]
        self.bytes = np.zeros(sum(sizes) + _ROOM, np.uint8)
        self.known = np.zeros(len(self.bytes), np.bool_)
        self.starts = [_ROOM + sum(sizes[:i]) for i in range(len(buffers))]
        for start, buffer in zip(self.starts, buffers, strict=True):
            self.bytes[start : start + len(buffer)] = buffer
            self.known[start : start + len(buffer)] = True

    def addresses(self) -> list[int]:
        return [GLOBAL_AT + start for start in self.starts]
