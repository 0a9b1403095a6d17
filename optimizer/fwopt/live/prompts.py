"""Prompts rebuilt from a trace's prefix blocks: its own lengths, its own sharing, the same bytes on every machine.

A block id stands for its whole prefix, so equal ids become equal tokens and nothing else is shared. The first two
tokens of a block spell its id in the base of the vocabulary, so that two prompts part exactly where the trace's do;
the rest is a counter-based hash of (salt, id, position). What no block covers is a block of its own, one per request.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError
from fwopt.live.vocabulary import Vocabulary
from fwopt.workload.columns import Workload

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


class Prompts:
    """Prompt i of a workload, built when asked for."""

    def __init__(self, workload: Workload, vocabulary: Vocabulary, salt: str = "", *, reserved: int = 0) -> None:
        """`reserved`: tokens that the server itself puts around every prompt; they count as the prompt's first."""
        self.workload, self.vocabulary, self.reserved = workload, vocabulary, reserved
        self._size = len(vocabulary.ids)
        self._unique = workload.unique_blocks
        if self._unique + len(workload) > self._size**2:
            raise InputError(
                f"{self._unique + len(workload):,} different blocks need a vocabulary of at least "
                f"{math.isqrt(self._unique + len(workload)) + 1:,} tokens, got {self._size:,}; give a larger range"
            )
        seed = int.from_bytes(blake2b(salt.encode(), digest_size=16, person=b"fwopt prompts").digest(), "little")
        self._key = np.uint64(seed & (1 << 64) - 1)
        self._offset = np.uint64((seed >> 64) % self._size**2)
        self._factor = np.uint64(self._coprime((seed >> 80) % (1 << 30)))

    def _coprime(self, start: int) -> int:
        """The first number from `start` on that shares no factor with the vocabulary's size: then ids stay distinct."""
        value = start | 1
        while math.gcd(value, self._size) != 1:
            value += 1
        return value

    def length(self, request: int) -> int:
        """Tokens that this client decides on; at least one."""
        return max(int(self.workload.prompt_tokens[request]) - self.reserved, 1)

    def _pieces(self, request: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(block ids, tokens of each), in order; a last id of the request's own for what no block covers."""
        w, length = self.workload, self.length(request)
        ids = w.block_ids[w.block_offsets[request] : w.block_offsets[request + 1]].astype(np.int64)
        ends = np.arange(1, len(ids) + 1, dtype=np.int64) * w.block_tokens - self.reserved
        counts = np.diff(np.concatenate([[0], np.clip(ends, 0, length)]))
        ids, counts = ids[counts > 0], counts[counts > 0]
        rest = length - int(counts.sum())
        if rest:
            ids, counts = np.append(ids, self._unique + request), np.append(counts, rest)
        return ids, counts

    def _indices(self, request: int) -> NDArray[np.int64]:
        ids, counts = self._pieces(request)
        unsigned = ids.astype(np.uint64)
        key = np.repeat(_mixed((unsigned * _GOLDEN) ^ self._key), counts)
        ends = np.cumsum(counts)
        starts = ends - counts
        place = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(starts, counts)
        size = np.uint64(self._size)
        hashed = _mixed(key + place.astype(np.uint64) * _GOLDEN) >> np.uint64(32)
        index = ((hashed * size) >> np.uint64(32)).astype(np.int64)
        spelled = (unsigned * self._factor + self._offset) % (size * size)
        index[starts] = (spelled % size).astype(np.int64)
        second = counts > 1
        index[starts[second] + 1] = (spelled // size)[second].astype(np.int64)
        return index

    def tokens(self, request: int) -> NDArray[np.int32]:
        """Token ids, exactly `length(request)`."""
        return self.vocabulary.ids[self._indices(request)]

    def text(self, request: int) -> str:
        """Text that encodes to exactly `length(request)` tokens: checked here with the tokenizer itself."""
        texts: Any = self.vocabulary.texts
        text = "".join([texts[i] for i in self._indices(request).tolist()])
        tokenizer, wanted = self.vocabulary.tokenizer, self.length(request)
        for tried in (text, text[1:]):  # some tokenizers put a space of their own in front
            if len(tokenizer.encode(tried, add_special_tokens=False).ids) == wanted:
                return str(tried)
        got = len(tokenizer.encode(text, add_special_tokens=False).ids)
        raise InputError(
            f"request {request}: text of {wanted} words must encode to as many tokens, got {got}; "
            "this tokenizer joins words: serve on an engine that takes token ids"
        )
