"""Floating-point arithmetic with one rounding, in numpy: bfloat16, float16, e4m3, fused products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32, F64 = NDArray[np.float32], NDArray[np.float64]
U16, U32 = NDArray[np.uint16], NDArray[np.uint32]
BF16 = (7, -126, 2.0**128 - 2.0**120)
F16 = (10, -14, 65504.0)
FLOAT32 = (23, -126, float(np.finfo(np.float32).max))
E4M3 = (3, -6, 448.0)
"""Bits of mantissa, exponent of the smallest normal number, largest number."""


def nearest(x: F64, format: tuple[int, int, float]) -> F64:
    """The nearest number of a format, ties to even; what rounds to more than its largest is infinite."""
    mantissa, least, largest = format
    exponent = np.maximum(np.frexp(x)[1] - 1, least)
    rounded = np.ldexp(np.rint(np.ldexp(x, mantissa - exponent)), exponent - mantissa)
    rounded = np.where(np.isfinite(x), rounded, x)
    return np.where(np.abs(rounded) > largest, np.copysign(np.inf, rounded), rounded)


def to_odd(a: F64, b: F64, c: F64) -> F64:
    """a * b + c, the product exact in float64, so that rounding it once more to fewer bits errs no more than once:
    an inexact sum gets an odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008)."""
    product = a * b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    odd = np.nextafter(total, towards)
    return np.where(np.isfinite(total) & (error != 0) & even, odd, total)


def fused(a: F64, b: F64, c: F64, format: tuple[int, int, float]) -> F64:
    """a * b + c of numbers of float32 or narrower, rounded once."""
    return nearest(to_odd(a, b, c), format)


def quiet(x: F32) -> F32:
    """Arithmetic makes all NaN the canonical one."""
    bits = np.array(x, np.float32)
    bits.view(np.uint32)[np.isnan(bits)] = 0x7FFFFFFF
    return bits


def flushed(x: F32) -> F32:
    """Subnormal numbers become zeros with their sign (`.ftz`)."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def from_bf16(bits: U16) -> F32:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16_bits(x: F64) -> U16:
    """Of numbers that bfloat16 represents, or that are to be rounded."""
    bits = (nearest(x, BF16).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), bits)


def f16_bits(x: F64) -> U16:
    bits = nearest(x, F16).astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), bits)


def e4m3_values() -> F64:
    """Of the codes 0 to 127, the last of which is NaN."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.ldexp(1.0, exponent - 10))
    return np.where(code == 127, np.nan, values)


def e4m3_bits(x: F64) -> NDArray[np.uint8]:
    """Saturating: what is larger than the largest number becomes that one. NaN stays."""
    rounded = np.minimum(np.abs(nearest(x, E4M3)), 448.0)
    codes = np.searchsorted(e4m3_values()[:127], np.where(np.isnan(x), 0.0, rounded)).astype(np.uint8)
    codes = np.where(np.isnan(x), np.uint8(0x7F), codes)
    return codes | (np.signbit(x) & ~np.isnan(x)).astype(np.uint8) << 7


def from_e4m3(bits: NDArray[np.uint8]) -> F64:
    values = e4m3_values()[bits & 127]
    return np.where(bits >> 7, -values, values)
