"""Casts and products inside kernels, to nearest even on a GPU and in Triton's interpreter alike.

The interpreter truncates float32 to bfloat16 and rounds fp8 ties wrongly, so there the value is first rounded with
integer arithmetic to one that the target represents; a GPU's own conversions need no help. It multiplies narrow
numbers wrongly, too.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
FP8_MAX = tl.constexpr(448.0)
INT8_MAX = tl.constexpr(127.0)


@triton.jit
def _round_mantissa(x, DROP: tl.constexpr):
    """float32 rounded to nearest even with its lowest DROP bits zero; NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = bits + ((1 << (DROP - 1)) - 1) + ((bits >> DROP) & 1)
    rounded = ((bits >> DROP) << DROP).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)


@triton.jit
def to_bf16(x):
    """float32 -> bfloat16."""
    if INTERPRETED:
        x = _round_mantissa(x, 16)
    return x.to(tl.bfloat16)


@triton.jit
def through_bf16(x):
    """float32 -> the nearest float32 that bfloat16 represents."""
    return to_bf16(x).to(tl.float32)


@triton.jit
def to_fp8(x):
    """float32 -> e4m3, saturating at 448; NaN stays NaN."""
    x = tl.clamp(x, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    if INTERPRETED:
        # below 2**-6 the spacing is 2**-9: adding 1.5 * 2**14 leaves no smaller bits
        x = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, _round_mantissa(x, 20))
    return x.to(tl.float8e4nv)


@triton.jit
def to_int8(x):
    """float32 -> int8 in -127..127."""
    x = tl.clamp(x, -INT8_MAX, INT8_MAX)
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2**23: no bits below one are left


@triton.jit
def row_scale(amax, FORMAT: tl.constexpr):
    """Scale of a row whose largest magnitude is `amax`, with vLLM's floors."""
    if FORMAT == "fp8-row":
        return tl.maximum(amax * (1.0 / FP8_MAX), 1.0 / (FP8_MAX * 512.0))
    else:
        return tl.maximum(amax * (1.0 / INT8_MAX), 1.1920928955078125e-07)


@triton.jit
def quantize(x, inverse_scale, FORMAT: tl.constexpr):
    """float32 values of a row -> its format."""
    if FORMAT == "fp8-row":
        return to_fp8(x * inverse_scale)
    else:
        return to_int8(x * inverse_scale)


@triton.jit
def dot(a, b, total):
    """total + a @ b: in float32, of int8 exactly in int32."""
    if INTERPRETED and total.dtype == tl.float32:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, out_dtype=total.dtype)
