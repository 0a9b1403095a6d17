"""What only a GPU runs, executed by the evaluator in `ptx/`: inline PTX, Triton's own conversions, whole kernels.

It is no GPU: it takes compiled PTX as the PTX ISA defines it, and approximations as exact. Compiled for sm_90.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fwopt_kernels.contract import Variant, variant
from fwopt_kernels.registry import OPERATORS, load

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

CHECKS = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom ptx import checks\n"
ROWS = {"rows": 3, "columns": 1100}
HEADS = {"tokens": 5, "heads": 3, "kv_heads": 2, "head_dim": 80, "rotary_dim": 32, "block_size": 16}
CONTEXTS = {"sequences": 3, "heads": 8, "kv_heads": 2, "head_dim": 64, "block_size": 16, "shortest": 0, "context": 130}
LAYER = {"tokens": 5, "experts": 4, "top_k": 2, "hidden": 256, "intermediate": 128}
GEMM = {"m": 5, "n": 72, "k": 384}
BLOCKS = variant(4, 1, BLOCK=1024)
TILES = variant(8, 3, BLOCK_M=64, BLOCK_N=128, SPLIT_K=1, GROUP_M=8, SWAP_AB=0, TMA=0)
GROUPS: dict[str, list[tuple[str, str, dict[str, int], Variant | None]]] = {
    "rows": [
        ("rms_norm", "fp8-row", ROWS, None),
        ("rms_norm", "fp8-row", ROWS, BLOCKS),
        ("silu_mul", "int8-row", ROWS, BLOCKS),
        ("rope_cache", "fp8", HEADS, None),
    ],
    "sampling": [("sampling", "fp32", {"rows": 8, "vocabulary": 1501}, variant(4, 1, BLOCK=1024, SPLITS=4))],
    "attention": [
        ("decode_attention", "fp8", CONTEXTS, None),
        ("prefill_attention", "bf16", {**CONTEXTS, "tokens": 70}, None),
    ],
    "experts": [("fused_moe", "w4a16", LAYER, None), ("fused_moe", "mxfp4", LAYER, None)],
    "products": [
        ("w4a16", "g128-zero", GEMM, None),
        ("w4a16", "mxfp4", GEMM, None),
        ("fp8_gemm", "fp8-row", {"m": 70, "n": 33, "k": 400}, TILES),
        ("lora", "bf16", {"tokens": 7, "adapters": 2, "rank": 16, "inputs": 320, "outputs": 136}, None),
    ],
}
"""Operator, format, shape, variant (None: the default)."""


def test_functions_that_are_inline_ptx_or_conversions() -> None:
    run_apart(f"{CHECKS}checks.functions()\n", interpret=False)


@pytest.mark.parametrize("group", GROUPS)
def test_whole_kernels(group: str) -> None:
    jobs = [
        (name, format, shape, chosen or load(OPERATORS[name]).space(format).default, 8)
        for name, format, shape, chosen in GROUPS[group]
    ]
    run_apart(f"from fwopt_kernels.contract import Variant\n{CHECKS}checks.operators({jobs!r})\n", interpret=False)
