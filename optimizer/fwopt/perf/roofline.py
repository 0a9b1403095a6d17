"""Bounds: the least time an operator can take on a device, from its bytes and its arithmetic.

Interpolation happens in utilisation, bound / time, which is smooth where times span five decades. A bound uses the
vendor's dense peaks; weights are read once, activations read and written once.
"""

from __future__ import annotations

import numpy as np

from fwopt.perf.grid import Floats
from fwopt.spec.hardware import DeviceSpec

WEIGHT_BYTES: dict[str, float] = {
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / (128 * 128),
    "int8": 1.0,
    "w4a16": 0.5 + 2 / 128,
    "mxfp4": 0.5 + 1 / 32,
}
"""Bytes per weight, scales included: fp32 per 128x128 block, fp16 per group of 128, one byte per 32."""
_ACTIVATION_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "w4a16": 2.0, "mxfp4": 2.0}
KV_BYTES = {"bf16": 2.0, "fp8": 1.0}
_OUT_BYTES = 2.0


def peak_flops(device: DeviceSpec, dtype: str) -> float:
    """Multiply-add rate for weights of `dtype`; 4-bit weights are multiplied in bf16."""
    if dtype in ("fp8", "fp8_block"):
        return device.fp8_flops or device.bf16_flops
    if dtype == "int8":
        return device.int8_ops or device.bf16_flops
    return device.bf16_flops


def gemm_parts(
    device: DeviceSpec, dtype: str, m: Floats, n: Floats | float, k: Floats | float
) -> tuple[Floats, Floats]:
    """(memory, arithmetic) seconds of (m, k) x (k, n)."""
    moved = m * k * _ACTIVATION_BYTES[dtype] + k * n * WEIGHT_BYTES[dtype] + m * n * _OUT_BYTES
    return moved / device.bandwidth_bytes_per_s, 2.0 * m * n * k / peak_flops(device, dtype)


def gemm(device: DeviceSpec, dtype: str, m: Floats, n: Floats | float, k: Floats | float) -> Floats:
    """Least seconds of (m, k) x (k, n)."""
    return np.maximum(*gemm_parts(device, dtype, m, n, k))


def attended(length: Floats, window: int) -> Floats:
    """Query-key pairs of causal attention over `length` tokens, `window` 0 meaning all."""
    full = length * (length + 1) / 2
    if not window:
        return np.asarray(full)
    inside = np.minimum(length, window)
    return np.asarray(inside * (inside + 1) / 2 + np.maximum(length - window, 0) * window)


def prefill_attention(
    device: DeviceSpec, batch: Floats, length: Floats, heads: int, kv_heads: int, head_dim: int, window: int
) -> Floats:
    """Least seconds of causal attention over `batch` prompts of `length` tokens; bf16 arithmetic, data moved once."""
    flops = 4.0 * batch * attended(length, window) * heads * head_dim
    moved = batch * length * (2 * heads + 2 * kv_heads) * head_dim * 2.0
    return np.asarray(np.maximum(flops / device.bf16_flops, moved / device.bandwidth_bytes_per_s))


def decode_attention(
    device: DeviceSpec,
    kv_dtype: str,
    batch: Floats,
    context: Floats,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
) -> Floats:
    """Least seconds for `batch` single queries over `context` cached tokens each: the cache is read once."""
    seen = np.minimum(context, window) if window else context
    moved = batch * (seen * 2 * kv_heads * KV_BYTES[kv_dtype] + 2 * heads * 2.0) * head_dim
    flops = 4.0 * batch * seen * heads * head_dim
    return np.asarray(np.maximum(moved / device.bandwidth_bytes_per_s, flops / device.bf16_flops))


def linear_decode(device: DeviceSpec, batch: Floats, heads: int, key_dim: int, value_dim: int, size: float) -> Floats:
    """Least seconds of one step of a recurrent state (heads, key_dim, value_dim) a sequence, `size` bytes a number: it
    is read and written once."""
    return np.asarray(batch * heads * key_dim * value_dim * 2 * size / device.bandwidth_bytes_per_s)


def linear_prefill(device: DeviceSpec, tokens: Floats, heads: int, key_dim: int, value_dim: int) -> Floats:
    """Least seconds of a recurrence over `tokens`: every token updates and reads the state."""
    return np.asarray(4.0 * tokens * heads * key_dim * value_dim / device.bf16_flops)


def experts_touched(tokens: Floats, experts: int, topk: int) -> Floats:
    """Experts that at least one token is routed to, expected under uniform routing."""
    return np.asarray(experts * -np.expm1(tokens * np.log1p(-min(topk / experts, 1 - 1e-12))))


def moe_parts(
    device: DeviceSpec,
    dtype: str,
    tokens: Floats,
    hidden: int,
    inter: float,
    experts: int,
    topk: int,
    tp: int,
    ep: int,
    gated: bool = True,
) -> tuple[Floats, Floats]:
    """(memory, arithmetic) seconds of one rank's experts for `tokens` tokens of the whole group."""
    matrices = 3 if gated else 2
    weights = matrices * hidden * inter / tp
    touched = experts_touched(tokens, experts, topk) / ep
    moved = touched * weights * WEIGHT_BYTES[dtype] + 2 * tokens * hidden * 2.0 / ep
    flops = 2.0 * tokens * topk / ep * weights
    return moved / device.bandwidth_bytes_per_s, flops / peak_flops(device, dtype)
