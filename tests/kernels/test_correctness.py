"""Each operator against its float64 reference: the kernel, interpreted, and the torch fallback."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fwopt_kernels.contract import Expected, Variant, variant
from fwopt_kernels.correctness import differences
from fwopt_kernels.registry import OPERATORS, load

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

HEADS = {"tokens": 5, "heads": 3, "kv_heads": 2, "head_dim": 64, "rotary_dim": 64, "block_size": 16}
ROWS: list[dict[str, int]] = [
    {"rows": 3, "columns": 1000},
    {"rows": 2, "columns": 4097},
    {"rows": 1, "columns": 1},
    {"rows": 0, "columns": 64},
    {"rows": 7, "columns": 33},
]
CONTEXTS = {"sequences": 4, "heads": 8, "kv_heads": 2, "head_dim": 64, "block_size": 16, "shortest": 0, "context": 200}
LAYER = {"tokens": 5, "experts": 4, "top_k": 2, "hidden": 256, "intermediate": 128}
SHAPES: dict[str, list[dict[str, int]]] = {
    "rms_norm": ROWS,
    "silu_mul": ROWS,
    "w4a16": [
        {"m": 5, "n": 72, "k": 384},
        {"m": 17, "n": 33, "k": 256},
        {"m": 1, "n": 130, "k": 128},
        {"m": 0, "n": 8, "k": 128},
    ],
    "fp8_gemm": [
        {"m": 5, "n": 130, "k": 400},
        {"m": 70, "n": 33, "k": 256},
        {"m": 1, "n": 256, "k": 16},
        {"m": 0, "n": 8, "k": 128},
    ],
    "int8_gemm": [
        {"m": 5, "n": 130, "k": 400},
        {"m": 70, "n": 33, "k": 256},
        {"m": 1, "n": 256, "k": 16},
        {"m": 0, "n": 8, "k": 128},
    ],
    "rope_cache": [
        HEADS,
        {**HEADS, "tokens": 33, "heads": 9, "kv_heads": 1},
        {**HEADS, "head_dim": 80, "rotary_dim": 32},
        {**HEADS, "head_dim": 96, "rotary_dim": 96, "block_size": 1},
        {**HEADS, "tokens": 0},
    ],
    "decode_attention": [
        CONTEXTS,
        {**CONTEXTS, "sequences": 1, "heads": 5, "kv_heads": 5, "head_dim": 80, "context": 33},
        {**CONTEXTS, "heads": 17, "kv_heads": 1, "head_dim": 96, "block_size": 64, "context": 130},
        {**CONTEXTS, "sequences": 2, "head_dim": 256, "block_size": 1, "context": 40},
        {**CONTEXTS, "head_dim": 128, "context": 0},
        {**CONTEXTS, "sequences": 0},
    ],
    "prefill_attention": [
        {**CONTEXTS, "heads": 6, "tokens": 70},
        {**CONTEXTS, "sequences": 1, "heads": 5, "kv_heads": 5, "head_dim": 80, "tokens": 33, "context": 33},
        {**CONTEXTS, "sequences": 2, "heads": 17, "kv_heads": 1, "head_dim": 96, "block_size": 64, "tokens": 9},
        {**CONTEXTS, "sequences": 2, "head_dim": 256, "block_size": 1, "tokens": 1, "context": 40},
        {**CONTEXTS, "head_dim": 128, "tokens": 9, "context": 0},
        {**CONTEXTS, "sequences": 0, "tokens": 9},
    ],
    "sampling": [{"rows": 8, "vocabulary": 1501}, {"rows": 1, "vocabulary": 5003}, {"rows": 0, "vocabulary": 9}],
    "lora": [
        {"tokens": 7, "adapters": 2, "rank": 16, "inputs": 320, "outputs": 136},
        {"tokens": 35, "adapters": 1, "rank": 72, "inputs": 200, "outputs": 33},
        {"tokens": 1, "adapters": 1, "rank": 8, "inputs": 64, "outputs": 8},
        {"tokens": 0, "adapters": 2, "rank": 8, "inputs": 64, "outputs": 8},
    ],
    "fused_moe": [
        LAYER,
        {**LAYER, "tokens": 11, "hidden": 96, "intermediate": 160},
        {**LAYER, "tokens": 2, "experts": 6, "top_k": 1, "hidden": 64, "intermediate": 32},
        {**LAYER, "tokens": 0},
    ],
}
VARIANTS: dict[str, Variant] = {
    "rms_norm": variant(4, 1, BLOCK=1024),
    "silu_mul": variant(2, 1, BLOCK=1024),
    "rope_cache": variant(1, 1, HEADS=2),
    "decode_attention": variant(1, 3, BLOCK_N=32, SPLITS=1),
    "prefill_attention": variant(4, 2, BLOCK_M=64, BLOCK_N=32, HEADS_FIRST=0, SPLITS=1),
    "fused_moe": variant(4, 3, BLOCK_SIZE_M=64, BLOCK_SIZE_N=256, BLOCK_SIZE_K=64, GROUP_SIZE_M=16),
    "sampling": variant(4, 1, BLOCK=1024, SPLITS=1),
    "lora": variant(8, 4, BLOCK_M=64, BLOCK_R=64, BLOCK_K=64, BLOCK_N=128, SPLIT_K=1),
    "w4a16": variant(4, 4, BLOCK_M=8, BLOCK_N=64, BLOCK_K=256, SPLIT_K=1, GROUP_M=1),
    "fp8_gemm": variant(8, 3, BLOCK_M=64, BLOCK_N=128, SPLIT_K=1, GROUP_M=8, SWAP_AB=0, TMA=0),
    "int8_gemm": variant(8, 3, BLOCK_M=64, BLOCK_N=128, SPLIT_K=1, GROUP_M=8, SWAP_AB=0, TMA=0),
}
CASES = [
    pytest.param(name, format, shape, id=f"{name}-{format}-{'x'.join(map(str, shape.values()))}")
    for name in OPERATORS
    for format in load(OPERATORS[name]).formats
    for shape in SHAPES[name]
]


@pytest.fixture
def seed(record_property: Callable[[str, object], None]) -> int:
    """Fresh inputs every time; the seed is printed when the test fails."""
    drawn = secrets.randbelow(2**31)
    record_property("seed", drawn)
    print("seed", drawn)
    return drawn


@pytest.mark.parametrize(("name", "format", "shape"), CASES)
@pytest.mark.parametrize("padding", [0, 24])
def test_the_kernel(name: str, format: str, shape: dict[str, int], padding: int, seed: int, interpreted: Any) -> None:
    """The default variant, that of large sizes with strided inputs, and one whose blocks are smaller than the row."""
    space = load(OPERATORS[name]).space(format)
    for chosen in (*(space.defaults if padding else [space.default]), VARIANTS[name]):
        assert interpreted(OPERATORS[name], format, shape, variant=chosen, seed=seed, padding=padding) == []


@pytest.mark.parametrize(("name", "format", "shape"), CASES)
def test_the_fallback(name: str, format: str, shape: dict[str, int], seed: int) -> None:
    assert differences(OPERATORS[name], format, shape, variant=None, seed=seed, padding=8) == []


def test_outputs_left_unwritten_are_seen() -> None:
    for name, target in OPERATORS.items():
        operator = load(target)
        for format in operator.formats:
            idle = _Changed(operator, fallback=lambda case: None)
            assert differences(idle, format, SHAPES[name][0], variant=None, seed=1), (name, format)


@pytest.mark.parametrize("format", ["bf16", "fp8-row", "int8-row"])
def test_a_result_that_is_cut_instead_of_rounded_is_seen(format: str) -> None:
    operator = load(OPERATORS["rms_norm"])

    def cut(case: Any) -> None:
        operator.fallback(case)
        values = operator.reference(case_before["x"])["out"].values
        if format == "int8-row":
            case.out.values.copy_((values / case.out.scale).trunc().to(torch.int8))
        else:
            drop = 16 if format == "bf16" else 20
            scaled = values if case.out.scale is None else values / case.out.scale
            bits = scaled.float().view(torch.int32)
            case.out.values.copy_(((bits >> drop) << drop).view(torch.float32).to(case.out.values.dtype))

    shape = {"rows": 3, "columns": 1000}
    case_before = {"x": operator.case(format, shape, 5)}
    assert any(
        line.startswith("out") for line in differences(_Changed(operator, cut), format, shape, variant=None, seed=5)
    )


def test_rows_more_than_two_to_the_31_elements_apart() -> None:
    """Untouched pages cost no memory: only three rows of the 4 GiB are ever written."""
    code = (
        "import torch\n"
        "from fwopt_kernels import row_formats\n"
        "from fwopt_kernels.silu_mul import SILU_MUL, SiluCase, silu_mul\n"
        "far = torch.empty(2 * (2**30 + 64) + 128, dtype=torch.bfloat16).as_strided((3, 128), (2**30 + 64, 1))\n"
        "far.copy_(torch.randn(3, 128))\n"
        "case = SiluCase(far, row_formats.poisoned('bf16', 3, 64, 'cpu'))\n"
        "silu_mul(case.x, case.out)\n"
        "want = SILU_MUL.reference(case)['out']\n"
        "assert ((case.results()['out'] - want.values).abs() <= want.atol + want.rtol * want.values.abs()).all()\n"
    )
    run_apart(code, interpret=True)


def test_the_activation_of_gpt_oss_is_cut_and_quantized_like_the_other() -> None:
    """Rows within one block and beyond it; numbers beyond the limit on both sides; NaN stays NaN."""
    code = (
        "import torch\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.correctness import faults\n"
        "from fwopt_kernels.silu_mul import SILU_MUL\n"
        "for format in SILU_MUL.formats:\n"
        "    for columns in (1000, 4097):\n"
        "        case = replace(SILU_MUL.case(format, {'rows': 3, 'columns': columns}, 5, padding=24), limit=1.5)\n"
        "        SILU_MUL.run(case, variant(2, 1, BLOCK=1024))\n"
        "        assert faults(case.results(), SILU_MUL.reference(case)) == [], (format, columns)\n"
        "case = replace(SILU_MUL.case('bf16', {'rows': 1, 'columns': 4}, 5), limit=7.0)\n"
        "case.x[0, 0] = case.x[0, 5] = float('nan')\n"
        "SILU_MUL.run(case, variant(2, 1, BLOCK=1024))\n"
        "assert case.out.values.isnan().tolist() == [[True, True, False, False]]\n"
    )
    run_apart(code, interpret=True)


def test_layouts_that_a_kernel_cannot_read_are_refused() -> None:
    """Before anything is launched, so no GPU and no interpreter is needed."""
    from fwopt_kernels.rope_cache import rope_cache
    from fwopt_kernels.silu_mul import silu_mul

    silu = load(OPERATORS["silu_mul"]).case("bf16", {"rows": 4, "columns": 8}, 0)
    with pytest.raises(ValueError, match="x: the last dimension must have stride 1, got 16"):
        silu_mul(torch.zeros(16, 32, dtype=torch.bfloat16).as_strided((4, 16), (1, 16)), silu.out)
    with pytest.raises(ValueError, match="limit must be above 0, got 0"):
        silu_mul(silu.x, silu.out, limit=0)
    rope = load(OPERATORS["rope_cache"]).case("bf16", HEADS, 0)
    by_head = rope.cache.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="cache: heads must be packed"):
        rope_cache(rope.query, rope.key, rope.value, by_head, rope.slots, rope.positions, rope.table, rope.scales)


def test_an_all_zero_row_gets_the_floor_as_its_scale() -> None:
    operator = load(OPERATORS["silu_mul"])
    for format, floor in (("fp8-row", 1 / (448 * 512)), ("int8-row", torch.finfo(torch.float32).eps)):
        case = operator.case(format, {"rows": 2, "columns": 16}, 0)
        case.x.zero_()
        operator.fallback(case)
        assert torch.all(case.out.scale == floor)
        assert torch.all(case.results()["out"] == 0)


class _Changed:
    """An operator with another fallback."""

    def __init__(self, operator: Any, fallback: Callable[[Any], None]) -> None:
        self.case, self.fallback = operator.case, fallback
        self._operator = operator

    def reference(self, case: Any) -> dict[str, Expected]:
        return self._operator.reference(case)


def test_the_least_bytes_are_those_of_the_buffers() -> None:
    """Of a whole case, with nothing read twice: its tensors' sizes, the residual counted for reading and writing."""
    shape = {"rows": 64, "columns": 256}
    for format in ("bf16", "fp8-row", "int8-row"):
        norm = load(OPERATORS["rms_norm"])
        case = norm.case(format, shape, 0)
        tensors = [case.x, case.residual, case.residual, case.weight, case.out.values, case.out.scale]
        assert norm.work(format, shape).bytes == sum(t.nbytes for t in tensors if t is not None)
        silu = load(OPERATORS["silu_mul"])
        made = silu.case(format, shape, 0)
        assert silu.work(format, shape).bytes == sum(
            t.nbytes for t in (made.x, made.out.values, made.out.scale) if t is not None
        )
