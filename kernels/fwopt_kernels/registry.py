"""The operators by name. Importing this loads neither torch nor triton; `load` does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwopt_kernels.contract import Operator

OPERATORS: dict[str, str] = {
    "rms_norm": "fwopt_kernels.rms_norm:RMS_NORM",
    "silu_mul": "fwopt_kernels.silu_mul:SILU_MUL",
    "rope_cache": "fwopt_kernels.rope_cache:ROPE_CACHE",
    "decode_attention": "fwopt_kernels.decode_attention:DECODE_ATTENTION",
    "prefill_attention": "fwopt_kernels.prefill_attention:PREFILL_ATTENTION",
    "fused_moe": "fwopt_kernels.fused_moe:FUSED_MOE",
    "w4a16": "fwopt_kernels.w4a16:W4A16_GEMM",
    "fp8_gemm": "fwopt_kernels.fp8_gemm:FP8_GEMM",
    "int8_gemm": "fwopt_kernels.int8_gemm:INT8_GEMM",
    "sampling": "fwopt_kernels.sampling:SAMPLING",
    "lora": "fwopt_kernels.lora:LORA",
}


def load(target: str) -> Operator[Any]:
    """The operator at `module:attribute`."""
    module, _, attribute = target.partition(":")
    operator: Operator[Any] = getattr(importlib.import_module(module), attribute)
    return operator
