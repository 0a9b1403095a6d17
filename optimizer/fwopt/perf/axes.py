"""Points at which a candidate's step times are tabulated."""

from __future__ import annotations

import numpy as np

from fwopt.perf.grid import Floats

LARGEST_STEP_TOKENS = 131072
"""Token budgets beyond this are refused."""


def token_axis(rows: Floats) -> Floats:
    """Every batch size an engine may capture, the measured rows beyond, and points to keep lines straight."""
    small = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
    return np.unique([*small, *rows[rows > 512], 640, 6144, 12288, 24576, 49152, 65536, LARGEST_STEP_TOKENS])


def length_axis(longest: int) -> Floats:
    """Dense enough that a chord of the quadratic A(L) is within about 1 % of it."""
    marks = [
        *(0, 1, 16, 32, 64, 96, 128, 192, 256, 384),
        *range(512, 4096, 256),
        *range(4096, 16384, 512),
        *range(16384, 65536, 1024),
        *range(65536, 262144, 4096),
        *range(262144, 1048577, 16384),
    ]
    inside = [float(mark) for mark in marks if mark < longest]
    return np.asarray([*inside, float(longest)])


DECODE_BATCH = np.asarray([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048.0])


def context_axis(longest: int) -> Floats:
    marks = [2.0**i * half for i in range(1, 21) for half in (1, 1.5)]
    return np.unique([1.0, *(m for m in marks if 16 <= m < longest), float(longest)])
