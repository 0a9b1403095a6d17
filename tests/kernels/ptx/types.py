"""Types of instructions, and how they are read."""

from __future__ import annotations

import numpy as np

from .parse import UnknownError

TYPES: dict[str, np.dtype[np.generic]] = {
    **{f"{kind}{bits}": np.dtype(f"{code}{bits // 8}")
       for kind, code in (("b", "u"), ("u", "u"), ("s", "i")) for bits in (8, 16, 32, 64)},
    "f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64),
    "bf16": np.dtype(np.uint16), "f16x2": np.dtype(np.uint32), "bf16x2": np.dtype(np.uint32),
    "e4m3x2": np.dtype(np.uint16), "pred": np.dtype(np.bool_),
}  # fmt: skip
"""bfloat16, and packed pairs, are read as their bits."""


def immediate(text: str, dtype: np.dtype[np.generic]) -> int:
    if text[:2].lower() in ("0f", "0d"):
        wanted = np.float32 if text[1] in "fF" else np.float64
        if (dtype.kind == "f" and dtype != wanted) or dtype.itemsize != np.dtype(wanted).itemsize:
            raise UnknownError(f"{text} read as {dtype}")
        return int(text[2:], 16)
    if dtype.kind == "f":
        raise UnknownError(f"{text} read as {dtype}")
    number = int(text, 0)
    return number & 1 if dtype.kind == "b" else number & (2 ** (8 * dtype.itemsize) - 1)
