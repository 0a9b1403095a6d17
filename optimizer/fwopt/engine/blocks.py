"""KV-cache blocks: who holds which, what each can be found by, and which free block goes first.

As vLLM's block pool: free blocks queue up; a taken block leaves at the front and only then forgets its content;
a released one that can be found again returns at the back, any other at the front.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

_ROOT = b"fwopt"
"""Parent of a prompt's first block."""


def block_hash(parent: bytes | None, tokens: Sequence[int]) -> bytes:
    """Key of a full block: it stands for all tokens from the start of the prompt."""
    return hashlib.sha256((parent or _ROOT) + array("I", tokens).tobytes()).digest()


class BlockPool:
    """`count` blocks, numbered from 0."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self._references = [0] * count
        self._hash: list[bytes | None] = [None] * count
        self._found: dict[bytes, dict[int, None]] = {}
        """Blocks by content, the oldest first: equal ones are not merged."""

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def find(self, key: bytes) -> int | None:
        """A block with this content, in use or free."""
        blocks = self._found.get(key)
        return next(iter(blocks)) if blocks else None

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds."""
        return sum(self._references[b] == 0 for b in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Share blocks that were found."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """`count` blocks for new content; the caller has checked that so many are free."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def publish(self, block: int, key: bytes) -> None:
        """From now on `block` is found by its content."""
        self._hash[block] = key
        self._found.setdefault(key, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Give up a sequence's blocks, its last one first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._hash[block] is None:
                    self._free.move_to_end(block, last=False)

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks in use keep their content but are no longer found."""
        for block in range(self.count):
            self._forget(block)

    def _forget(self, block: int) -> None:
        key = self._hash[block]
        if key is None:
            return
        self._hash[block] = None
        copies = self._found[key]
        del copies[block]
        if not copies:
            del self._found[key]
