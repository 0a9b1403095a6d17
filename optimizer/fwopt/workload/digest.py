"""A workload's identity: the SHA-256 of what its columns hold, whatever file they came from."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from fwopt.workload.columns import Workload

_COLUMNS = (
    ("arrival_s", "<f8"),
    ("prompt_tokens", "<i4"),
    ("output_tokens", "<i4"),
    ("max_tokens", "<i4"),
    ("block_offsets", "<i8"),
    ("block_ids", "<i4"),
    ("session", "<i4"),
    ("parent", "<i4"),
    ("model", "<i2"),
    ("adapter", "<i2"),
    ("tools", "<i2"),
)


def digest(workload: Workload) -> str:
    """16 hex digits. Name and source format are left out; ids are already in order of first appearance."""
    sha = hashlib.sha256(b"fwopt workload 1\n")
    for name, dtype in _COLUMNS:
        column = np.ascontiguousarray(getattr(workload, name), dtype=dtype)
        sha.update(f"{name} {len(column)}\n".encode())
        sha.update(column.data)
    sha.update(repr((workload.block_tokens, workload.models, workload.adapters)).encode())
    return sha.hexdigest()[:16]


def with_digest(workload: Workload) -> Workload:
    return replace(workload, digest=digest(workload))
