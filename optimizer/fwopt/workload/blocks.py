"""Prefix blocks: whatever a trace calls them, they become dense ids that stand for a whole prefix."""

from __future__ import annotations

import re
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

MAX_RAW = (1 << 64) - 1
_HEX = re.compile("[0-9a-fA-F]{1,128}")


def raw_hash(text: str) -> int | None:
    """A hex hash as 64 bits: up to 16 digits as they are, longer ones folded; None when not hexadecimal."""
    if _HEX.fullmatch(text) is None:
        return None
    if len(text) <= 16:
        return int(text, 16)
    return int.from_bytes(blake2b(text.lower().encode(), digest_size=8).digest(), "little")


def prefix_ids(raw: NDArray[np.uint64], offsets: NDArray[np.int64], owner: NDArray[np.int64]) -> NDArray[np.int32]:
    """Dense ids in order of first appearance; two requests of one owner (model and adapter) share the id at
    position k exactly when their first k+1 raw hashes are equal.

    So hashes of single blocks and hashes of whole prefixes both read right, and a block that recurs behind
    another prefix, or under another model, is no hit.
    """
    if not len(raw):
        return np.zeros(0, np.int32)
    ids = _dense(raw)
    if not _is_chained(ids, offsets, owner):
        ids = _chained(ids, offsets, owner)
    return in_order(ids)


def _dense(raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    if int(raw.max()) < max(4 * len(raw), 1024):
        return raw.astype(np.int64)
    return np.unique(raw, return_inverse=True)[1].astype(np.int64, copy=False)


def _is_chained(ids: NDArray[np.int64], offsets: NDArray[np.int64], owner: NDArray[np.int64]) -> bool:
    """Whether each id already implies everything before it: it always has one and the same predecessor."""
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    starts = offsets[:-1][np.diff(offsets) > 0]
    before[starts] = -1 - owner[np.diff(offsets) > 0]
    seen = np.empty(int(ids.max()) + 1, np.int64)
    seen[ids] = before
    return bool(np.array_equal(seen[ids], before))


def _chained(ids: NDArray[np.int64], offsets: NDArray[np.int64], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """New ids for (id, everything before it), one block position at a time over all requests."""
    out = np.empty_like(ids)
    lengths = np.diff(offsets)
    active = np.flatnonzero(lengths > 0)
    parent = owner[active].astype(np.int64)
    width = int(ids.max()) + 1
    used = 0
    for position in range(int(lengths.max())):
        at = offsets[active] + position
        unique, inverse = np.unique(parent * width + ids[at], return_inverse=True)
        out[at] = used + inverse
        going = lengths[active] > position + 1
        active, parent = active[going], inverse[going]
        used += len(unique)
    return out


def in_order(ids: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids renumbered 0.. in order of first appearance."""
    if not len(ids):
        return np.zeros(0, np.int32)
    first = np.full(int(ids.max()) + 1, len(ids), np.int64)
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    return rank[ids]
