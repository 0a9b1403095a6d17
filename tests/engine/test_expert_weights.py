"""Experts stay in the numbers of their scheme: the logits of those numbers, in the bytes that they take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fwopt.engine.expert_weights import plain
from fwopt.engine.model import ExpertWeights
from fwopt.engine.operators import unpacked
from fwopt.engine.parallel import Ranks
from fwopt.engine.runner import Runner
from fwopt.errors import InputError
from fwopt_kernels.moe_weights import Matrix, matrix_bytes

from .test_logits import LIMITS, TRITON_STARTS, TRITON_TEXTS, in_mxfp4, logits_by_steps

SCHEMES: dict[str, dict[str, Any]] = {
    "w4a16": {"kind": "w4a16", "group_size": 32, "scope": "experts"},
    "fp8-block": {"kind": "fp8"},
}


def experts_of(runner: Runner) -> list[ExpertWeights]:
    found = [layer.mlp for layer in runner.model.layers if isinstance(layer.mlp, ExpertWeights)]
    assert found
    return found


def dequantize(runner: Runner) -> None:
    """The numbers that the experts stand for, in the model's dtype: what the engine held before it could hold less."""

    def whole(matrix: Matrix) -> Matrix:
        experts = range(len(matrix.values))
        return plain(torch.stack([unpacked(matrix, e, runner.model.dtype) for e in experts]))

    for i, layer in enumerate(runner.model.layers):
        if isinstance(layer.mlp, ExpertWeights):
            mlp = replace(layer.mlp, up=whole(layer.mlp.up), down=whole(layer.mlp.down))
            runner.model.layers[i] = replace(layer, mlp=mlp)


def both(settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with the experts as they are held, and dequantized."""
    runner, other = Runner(settings, Ranks()), Runner(settings, Ranks())
    dequantize(other)
    ours, theirs = (torch.cat(logits_by_steps(r, TRITON_TEXTS, TRITON_STARTS)) for r in (runner, other))
    return ours, theirs


@pytest.mark.parametrize("format", SCHEMES)
@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_logits_are_those_of_the_dequantized_experts(format, dtype, most, model_folder, make_settings):
    scheme = {"quantization": SCHEMES[format]}
    ours, theirs = both(make_settings(model_folder("qwen3-moe"), LIMITS, dtype=dtype, candidate=scheme))
    assert (ours - theirs).norm() <= most * theirs.norm()


@pytest.mark.parametrize(("format", "most"), [("w4a16", 0.02), ("fp8-block", 0.1)])
def test_the_kernels_fallbacks_read_them_too(format, most, model_folder, make_settings):
    """FP8 kernels round activations as well, to e4m3 groups. A token whose experts flip at a tie is far off."""
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    scheme = {"quantization": SCHEMES[format]}
    settings = make_settings(model_folder("qwen3-moe"), LIMITS, dtype="bf16", operators="triton", candidate=scheme)
    ours, theirs = both(settings)
    assert ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).median() < most


@pytest.mark.parametrize("format", SCHEMES)
def test_they_take_the_bytes_of_their_scheme(format, model_folder, make_settings):
    """Free memory is counted after loading, so the KV cache gets what they leave."""
    scheme = {"quantization": SCHEMES[format]}
    runner = Runner(make_settings(model_folder("qwen3-moe"), LIMITS, dtype="bf16", candidate=scheme), Ranks())
    for experts in experts_of(runner):
        for matrix in (experts.up, experts.down):
            assert matrix.format == format
            assert matrix.scale is not None
            held = matrix.values.nbytes + matrix.scale.nbytes
            scales = len(matrix.values) * matrix.outputs * matrix.inputs // 32 * 2 if format == "w4a16" else None
            if scales is None:
                assert held == len(matrix.values) * matrix_bytes(format, matrix.outputs, matrix.inputs)
            else:
                assert held == len(matrix.values) * matrix.outputs * matrix.inputs // 2 + scales


def test_fp8_in_blocks_is_refused_for_experts_as_for_the_rest(model_folder, make_settings):
    scheme = {"quantization": {"kind": "fp8", "scale": "block"}}
    with pytest.raises(InputError, match="one scale a tensor"):
        Runner(make_settings(model_folder("qwen3-moe"), LIMITS, candidate=scheme), Ranks())


@pytest.mark.parametrize("rank", [0, 1])
def test_mxfp4_experts_stay_packed_where_kernels_run_them(rank, model_folder, make_settings, tmp_path):
    """Half an expert's 96 columns a rank are no whole groups of 32: the down projection is unpacked there. The same
    numbers, gate before up, through the kernels' fallback and through torch, which has them in bf16."""
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    packed, _ = in_mxfp4(model_folder("gpt-oss"), tmp_path)
    scheme = {"quantization": {"kind": "mxfp4"}}
    for ranks in (Ranks(), Ranks(rank, 2)):
        kernels, plain_ones = (
            Runner(make_settings(packed, LIMITS, dtype="bf16", operators=operators, candidate=scheme), ranks)
            for operators in ("triton", "torch")
        )
        torch.manual_seed(4)
        x, chosen = torch.randn(9, 64).to(torch.bfloat16), torch.rand(9, 4).topk(2).indices
        weights = torch.rand(9, 2).to(torch.bfloat16)
        for mine, other in zip(experts_of(kernels), experts_of(plain_ones), strict=True):
            formats = mine.up.format, mine.down.format, other.up.format
            assert formats == ("mxfp4", "mxfp4" if ranks.size == 1 else "bf16", "bf16")
            if ranks.size == 1:
                for ours, theirs in ((mine.up, other.up), (mine.down, other.down)):
                    dense = torch.stack([unpacked(ours, e, torch.bfloat16) for e in range(4)])
                    assert torch.equal(dense, theirs.values)
            found, want = (
                runner.model.path.experts(x, e.up, e.down, chosen, weights, e.biases, e.shape.limit).float()
                for runner, e in ((kernels, mine), (plain_ones, other))
            )
            assert (found - want).norm() < 0.02 * want.norm()
