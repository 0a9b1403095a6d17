"""From steps to calls of operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fwopt.sim.counts import StepCounts
from fwopt.spec.candidate import W4A16, Batching, Candidate, Fp8, Parallelism
from fwopt.targets import load_model
from fwopt.tuning.demand import demands
from fwopt.tuning.family import shape_of
from fwopt.tuning.operators import load_operator

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

STEPS = StepCounts(
    tokens=np.asarray([1, 8, 2048]), token_steps=np.asarray([10.0, 5.0, 2.0]), batch=np.asarray([1, 8]),
    context=np.asarray([100.4, 900.0]), decode_steps=np.asarray([10.0, 7.0]),
)  # fmt: skip


def test_every_layer_calls_its_norms_activation_and_rope_once_a_step() -> None:
    model = load_model("Qwen/Qwen3-8B")
    found, _ = demands(model, Candidate(parallelism=Parallelism(tp=2), batching=Batching(block_size=32)), STEPS)
    by = {d.family.operator: d for d in found}
    assert by["rms_norm"].calls.tolist() == [720.0, 360.0, 144.0]
    assert by["rms_norm"].points.tolist() == [[1], [8], [2048]]
    assert dict(by["rms_norm"].family.fixed) == {"columns": 4096}
    assert dict(by["silu_mul"].family.fixed) == {"columns": 6144}
    assert dict(by["rope_cache"].family.fixed) == {
        "heads": 16, "kv_heads": 4, "head_dim": 128, "rotary_dim": 128, "block_size": 32,
    }  # fmt: skip
    assert by["rope_cache"].calls.sum() == 36 * 17


def test_a_step_samples_once_for_all_layers_and_ranks() -> None:
    steps = replace(STEPS, batch=np.asarray([1, 8, 8]), context=np.asarray([9.0, 9.0, 99.0]), decode_steps=np.ones(3))
    found, _ = demands(load_model("Qwen/Qwen3-8B"), Candidate(parallelism=Parallelism(tp=2)), steps)
    (sampled,) = (d for d in found if d.family.operator == "sampling")
    assert (sampled.family.format, sampled.family.fixed) == ("fp32", (("vocabulary", 151_936),))
    assert (sampled.points.tolist(), sampled.calls.tolist()) == ([[1], [8]], [1.0, 2.0])


def test_quantized_layers_are_fed_in_their_format() -> None:
    model = load_model("Qwen/Qwen3-8B")
    for quantization, kv, row in ((Fp8(), "fp8", "fp8-row"), (W4A16(), "bf16", "bf16")):
        found, _ = demands(model, Candidate(quantization=quantization, kv_dtype=kv), STEPS)
        formats = {d.family.operator: d.family.format for d in found}
        assert formats["rms_norm"] == formats["silu_mul"] == row
        assert formats["rope_cache"] == kv


@pytest.mark.parametrize(
    ("engine", "scale", "wanted"),
    [("fwopt", "tensor", "fp8-block"), ("vllm", "block", "fp8-block"), ("fwopt", None, "bf16")],
)
def test_experts_are_tuned_in_the_format_that_the_engine_runs_them_in(engine, scale, wanted) -> None:
    candidate = Candidate(quantization=Fp8(scale=scale)) if scale else Candidate()
    found, _ = demands(load_model("Qwen/Qwen3-30B-A3B"), candidate, STEPS, engine)
    assert {d.family.format for d in found if d.family.operator == "fused_moe"} == {wanted}


def test_every_operator_gets_its_dimensions() -> None:
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"):
        for quantization in (Fp8(), Fp8(scale="block"), W4A16()):
            found, _ = demands(load_model(name), Candidate(quantization=quantization), STEPS)
            for demand in found:
                operator = load_operator(demand.family.operator)
                shape = shape_of(demand.family, tuple(demand.points[0].tolist()), operator.dimensions)
                assert tuple(n for n, _ in shape) == tuple(operator.dimensions)
                assert operator.work(demand.family.format, dict(shape)).bytes > 0
