"""What the mixture-of-experts layer promises beyond its reference: any routing, far experts, one order of pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fwopt_kernels import mxfp4
from fwopt_kernels.correctness import differences

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt_kernels.fused_moe import FUSED_MOE, FusedMoe, fused_moe, tuned
from fwopt_kernels.moe_formats import FORMATS, VLLM_DTYPES
from fwopt_kernels.moe_routing import align_torch, most_rows
from fwopt_kernels.moe_weights import Matrix, tiled

SHAPE = {"tokens": 20, "experts": 6, "top_k": 2, "hidden": 128, "intermediate": 64}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("choice", ["one", "partial"])
def test_experts_without_tokens_and_tokens_without_experts(format: str, choice: Any, interpreted: Any) -> None:
    operator = FusedMoe(choice)
    ids = operator.case(format, SHAPE, 3).ids
    assert len(set(ids.flatten().tolist()) - {-1}) == (2 if choice == "one" else 6)
    assert bool((ids == -1).any()) == (choice == "partial")
    default = operator.space(format).default
    assert interpreted(operator, format, SHAPE, variant=default, seed=3) == []
    assert differences(operator, format, SHAPE, variant=None, seed=3) == []


@pytest.mark.parametrize("format", FORMATS)
def test_tolerances_tell_a_wrong_expert_a_wrong_share_and_a_wrong_scale(format: str) -> None:
    case = FUSED_MOE.case(format, SHAPE, 9)
    want = FUSED_MOE.reference(case)["out"]

    def wrong(**changes: Any) -> float:
        changed = replace(case, out=torch.empty_like(case.out), **changes)
        FUSED_MOE.fallback(changed)
        off = (changed.results()["out"] - want.values).abs() > want.atol + want.rtol * want.values.abs()
        return float(off.double().mean())

    assert wrong() == 0
    assert wrong(ids=(case.ids + 1) % 6) > 0.9
    assert wrong(probabilities=case.probabilities * 1.1) > 0.5
    if format == "bf16":
        scaled = Matrix(format, case.w2.values * 2, None)
    elif format == "mxfp4":  # one more in the exponents of four channels
        scaled = replace(case.w2, scale=case.w2.scale + 0x01010101)
    else:
        scaled = replace(case.w2, scale=case.w2.scale * 2)
    assert wrong(w2=scaled) > 0.9
    if case.biases is not None:
        assert wrong(biases=None) > 0.9
        assert wrong(biases=(case.biases[0], case.biases[1].roll(1, 0))) > 0.9
        assert wrong(limit=None) > 0.9
        assert wrong(limit=1.6) > 0.5


def test_pairs_are_sorted_by_expert_and_filled_up() -> None:
    ids = torch.tensor([[2, 0], [2, 1], [-1, 2], [0, 2], [5, 4]], dtype=torch.int32)
    routing = align_torch(ids, 5, 4)
    assert int(routing.padded) == 16
    assert routing.pairs[:16].tolist() == [1, 6, 10, 10, 3, 10, 10, 10, 0, 2, 5, 7, 9, 10, 10, 10]
    assert routing.experts[:4].tolist() == [0, 1, 2, 4]


def test_the_kernel_sorts_as_torch_does() -> None:
    """Over several chunks of ids, with experts that have none; and no routing needs more rows than its buffers have."""
    code = (
        "import torch\n"
        "from fwopt_kernels.moe_routing import align, align_torch\n"
        "for tokens, experts, top_k, block in ((700, 5, 3, 16), (40, 20, 8, 64), (3, 9, 1, 16)):\n"
        "    ids = torch.rand(tokens, experts).topk(top_k).indices.int()\n"
        "    ids[torch.rand(tokens, top_k) < 0.3] = -1\n"
        "    ids[ids == 2] = 1\n"
        "    one, other = align(ids, experts, block), align_torch(ids, experts, block)\n"
        "    rows = int(one.padded)\n"
        "    assert rows == int(other.padded) <= len(one.pairs)\n"
        "    assert torch.equal(one.pairs[:rows], other.pairs[:rows])\n"
        "    assert torch.equal(one.experts[: rows // block], other.experts[: rows // block])\n"
    )
    run_apart(code, interpret=True)


@pytest.mark.parametrize(("pairs", "experts"), [(1, 8), (5, 8), (8, 8), (100, 8), (64, 1)])
def test_buffers_hold_the_worst_routing(pairs: int, experts: int) -> None:
    """One pair each for all experts but one, the rest for that one."""
    block = 16
    used = min(pairs, experts)
    worst = (used - 1) * block + -(-(pairs - used + 1) // block) * block
    assert worst <= most_rows(pairs, experts, block) <= pairs * block


def test_experts_more_than_two_to_the_31_elements_apart() -> None:
    """Untouched memory costs nothing: only three experts of the 4 GiB are ever written."""
    code = (
        "import torch\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.fused_moe import FUSED_MOE, SPACES\n"
        "from fwopt_kernels.moe_weights import Matrix\n"
        "case = FUSED_MOE.case('bf16', dict(tokens=3, experts=3, top_k=2, hidden=64, intermediate=32), 7)\n"
        "far = torch.empty(2 * (2**30 + 64) + 4096, dtype=torch.bfloat16)\n"
        "far = far.as_strided((3, 64, 64), (2**30 + 64, 64, 1))\n"
        "far.copy_(case.w1.values)\n"
        "FUSED_MOE.run(replace(case, w1=Matrix('bf16', far, None)), SPACES['bf16'].default)\n"
        "want = FUSED_MOE.reference(case)['out']\n"
        "assert ((case.results()['out'] - want.values).abs() <= want.atol + want.rtol * want.values.abs()).all()\n"
    )
    run_apart(code, interpret=True)


def test_the_least_bytes_are_those_of_the_buffers() -> None:
    """With so many tokens that every expert is hit."""
    shape = {**SHAPE, "tokens": 500, "hidden": 256, "intermediate": 128}
    for format in FORMATS:
        case = FUSED_MOE.case(format, shape, 0)
        tensors = [case.x, case.ids, case.probabilities, case.out]
        tensors += [t for w in (case.w1, case.w2) for t in (w.values, w.scale) if t is not None]
        tensors += case.biases or ()
        assert FUSED_MOE.work(format, shape).bytes == sum(t.nbytes for t in tensors)
    one = FUSED_MOE.work("bf16", {**shape, "tokens": 1})
    assert one.bytes == 2 * 3 * 128 * 256 * 2 + 4 * 256 + 16
    assert one.flops == 6 * 2 * 128 * 256


def test_a_variant_is_an_entry_of_a_tuned_file() -> None:
    for format in FORMATS:
        for variant in FUSED_MOE.space(format).variants():
            entry = tuned(variant)
            assert list(entry) == [
                "BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages"
            ]  # fmt: skip
            assert set(entry) == {*dict(variant.constants), "num_warps", "num_stages"}
    assert set(FORMATS) - set(VLLM_DTYPES) == {"mxfp4"}


@pytest.mark.parametrize("format", ["bf16", "w4a16", "mxfp4"])
def test_biases_and_the_clamped_activation_are_each_format_s(format: str) -> None:
    """gpt-oss's layer in formats whose own case has none, MXFP4 without; biases of absent experts count nothing."""
    code = (
        "import torch\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.correctness import faults\n"
        "from fwopt_kernels.fused_moe import FusedMoe, SPACES\n"
        "shape = dict(tokens=20, experts=6, top_k=2, hidden=96, intermediate=64)\n"
        f"op, format = FusedMoe('partial'), {format!r}\n"
        "case = op.case(format, shape, 11)\n"
        "biases = tuple(torch.randn(6, n).to(torch.bfloat16) for n in (128, 96))\n"
        "for some, limit in ((biases, 1.5), (biases, None), (None, None), (None, 7.0)):\n"
        "    made = replace(case, biases=some, limit=limit, out=torch.full_like(case.out, float('nan')))\n"
        "    for variant in SPACES[format].defaults:\n"
        "        op.run(made, variant)\n"
        "        assert faults(made.results(), op.reference(made)) == [], (limit, variant.id)\n"
    )
    run_apart(code, interpret=True)


def test_mxfp4_experts_are_those_of_the_checkpoint() -> None:
    """Padded tiles of an odd size, back to the numbers that gpt-oss's bytes stand for."""
    codes = torch.randint(0, 256, (3, 72, 80), dtype=torch.uint8)
    scales = torch.randint(100, 130, (3, 72, 5), dtype=torch.uint8)
    matrix = tiled(codes, scales)
    assert (matrix.outputs, matrix.inputs, matrix.group) == (72, 160, 32)
    for expert in range(3):
        want = mxfp4.dense(codes[expert], scales[expert], torch.float64)
        assert torch.equal(matrix.dense(expert, torch.float64), want)
    with pytest.raises(ValueError, match=r"MXFP4 scales must be at most 160 .*; got 255"):
        tiled(codes, torch.full_like(scales, 255))


def test_mxfp4_experts_are_multiplied_out_of_registers_with_wgmma() -> None:
    """What the tiles are for, also for the 16 rows of a decode: copies of 16 bytes, and between them and the matrix
    instructions nothing goes back to shared memory but scales."""
    code = (
        "import re\n"
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.fused_moe import FUSED_MOE, SPACES\n"
        "for default in SPACES['mxfp4'].defaults:\n"
        "    launch = FUSED_MOE.launches('mxfp4', default)[0]\n"
        "    ptx = compiled_kernel(launch, ARCHITECTURES['sm_90']).asm['ptx']\n"
        "    assert 'wgmma.mma_async' in ptx and 'mma.sync' not in ptx\n"
        "    assert 'ld.global.v4' not in ptx and len(re.findall('cp.async.cg.shared.global', ptx)) >= 18\n"
        "    loop = ptx[ptx.index('prmt.b32') : ptx.rindex('wgmma.mma_async')]\n"
        "    assert all('.b16' in line for line in loop.splitlines() if 'st.shared' in line)\n"
    )
    run_apart(code, interpret=False)


def test_layouts_that_it_cannot_read_are_refused() -> None:
    case = FUSED_MOE.case("bf16", SHAPE, 0)
    across = case.x.t().contiguous().t()
    with pytest.raises(ValueError, match="x: the last dimension must have stride 1, got 20"):
        fused_moe(across, case.ids, case.probabilities, case.w1, case.w2, case.out)
    with pytest.raises(ValueError, match="ids and probabilities must be contiguous"):
        fused_moe(case.x, case.ids.t().contiguous().t(), case.probabilities, case.w1, case.w2, case.out)
    with pytest.raises(ValueError, match="weights of 128 x 128 and 128 x 64 do not fit 64 columns"):
        fused_moe(case.x[:, :64], case.ids, case.probabilities, case.w1, case.w2, case.out)
    biases = torch.zeros(6, 128, dtype=torch.bfloat16), torch.zeros(6, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"w2: biases must be contiguous \(6, 128\), got \(6, 64\)"):
        fused_moe(case.x, case.ids, case.probabilities, case.w1, case.w2, case.out, biases=biases)
    four = FUSED_MOE.case("w4a16", SHAPE, 0, padding=1)
    with pytest.raises(ValueError, match="x: w4a16 experts read numbers in pairs, rows must begin at even ones"):
        fused_moe(four.x, four.ids, four.probabilities, four.w1, four.w2, four.out)
    eight = FUSED_MOE.case("fp8-block", SHAPE, 0)
    with pytest.raises(ValueError, match=r"fp8-block experts know silu only, got an activation cut at 7\.0"):
        fused_moe(eight.x, eight.ids, eight.probabilities, eight.w1, eight.w2, eight.out, limit=7.0)
