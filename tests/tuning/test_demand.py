"""From steps to calls of operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fwopt.sim.counts import StepCounts
from fwopt.spec.candidate import W4A16, Batching, Candidate, Fp8, Int8, Mxfp4, Parallelism
from fwopt.targets import load_model
from fwopt.tuning.demand import demands
from fwopt.tuning.family import shape_of
from fwopt.tuning.operators import load_operator

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

STEPS = StepCounts(
    tokens=np.asarray([1, 8, 2048]), token_steps=np.asarray([10.0, 5.0, 2.0]), batch=np.asarray([1, 8]),
    context=np.asarray([100.4, 900.0]), decode_steps=np.asarray([10.0, 7.0]),
    chunks=np.asarray([1.0, 2.5]), chunk_tokens=np.asarray([1948.6, 33.0]), chunk_context=np.asarray([4000.0, 33.0]),
    chunk_steps=np.asarray([2.0, 4.0]),
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
    for quantization, kv, row in (
        (Fp8(), "fp8", "fp8-row"), (W4A16(), "bf16", "bf16"), (Int8(), "bf16", "int8-row"),
    ):  # fmt: skip
        found, _ = demands(model, Candidate(quantization=quantization, kv_dtype=kv), STEPS)
        formats = {d.family.operator: d.family.format for d in found}
        assert formats["rms_norm"] == formats["silu_mul"] == row
        assert formats["rope_cache"] == kv


@pytest.mark.parametrize("engine", ["vllm", "fwopt"])
def test_int8_layers_are_tuned_with_scales_found_token_by_token(engine) -> None:
    found, notes = demands(load_model("Qwen/Qwen3-8B"), Candidate(quantization=Int8()), STEPS, engine)
    products = {(d.family.format, *dict(d.family.fixed).values()) for d in found if d.family.operator == "int8_gemm"}
    assert products == {("int8-row", n, k) for n, k in ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288))}
    assert notes == []
    norms = next(d.family.format for d in found if d.family.operator == "rms_norm")
    assert norms == ("bf16" if engine == "fwopt" else "int8-row")


@pytest.mark.parametrize(
    ("engine", "scale", "wanted"),
    [("fwopt", "tensor", "fp8-block"), ("vllm", "block", "fp8-block"), ("fwopt", None, "bf16")],
)
def test_experts_are_tuned_in_the_format_that_the_engine_runs_them_in(engine, scale, wanted) -> None:
    candidate = Candidate(quantization=Fp8(scale=scale)) if scale else Candidate()
    found, _ = demands(load_model("Qwen/Qwen3-30B-A3B"), candidate, STEPS, engine)
    assert {d.family.format for d in found if d.family.operator == "fused_moe"} == {wanted}


def test_prompt_chunks_attend_once_a_layer_and_step() -> None:
    model = load_model("Qwen/Qwen3-8B")
    found, _ = demands(model, Candidate(parallelism=Parallelism(tp=2)), STEPS)
    (demand,) = [d for d in found if d.family.operator == "prefill_attention"]
    assert demand.family.axes == ("sequences", "tokens", "context")
    assert demand.points.tolist() == [[1, 1949, 4000], [2, 33, 33]]
    assert demand.calls.tolist() == [72.0, 144.0]
    assert dict(demand.family.fixed) == {"heads": 16, "kv_heads": 4, "head_dim": 128, "block_size": 16}
    shape = shape_of(demand.family, (2, 33, 30), load_operator("prefill_attention").dimensions)
    assert dict(shape)["shortest"] == dict(shape)["context"] == 33, "a context holds its chunk"


def test_without_prompt_chunks_there_is_no_demand_for_them() -> None:
    none = np.zeros(0)
    steps = replace(STEPS, chunks=none, chunk_tokens=none, chunk_context=none, chunk_steps=none)
    found, _ = demands(load_model("Qwen/Qwen3-8B"), Candidate(), steps)
    assert "prefill_attention" not in {d.family.operator for d in found}


@pytest.mark.parametrize("tp", [1, 2])
def test_mxfp4_experts_are_tuned_as_mxfp4(tp) -> None:
    candidate = Candidate(quantization=Mxfp4(), parallelism=Parallelism(tp=tp))
    found, notes = demands(load_model("openai/gpt-oss-20b"), candidate, STEPS, "fwopt")
    families = [d.family for d in found if d.family.operator == "fused_moe"]
    assert {family.format for family in families} == {"mxfp4"}
    sizes = {"experts": 32, "top_k": 4, "hidden": 2880, "intermediate": 2880 // tp}
    assert all(dict(family.fixed) == sizes for family in families)
    assert sum(d.calls.sum() for d in found if d.family.operator == "fused_moe") == 24 * 17
    assert not [note for note in notes if "moe" in note or "mxfp4" in note]


def test_every_operator_gets_its_dimensions() -> None:
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"):
        for quantization in (Fp8(), Fp8(scale="block"), W4A16(), Int8()):
            found, _ = demands(load_model(name), Candidate(quantization=quantization), STEPS)
            for demand in found:
                operator = load_operator(demand.family.operator)
                shape = shape_of(demand.family, tuple(demand.points[0].tolist()), operator.dimensions)
                assert tuple(n for n, _ in shape) == tuple(operator.dimensions)
                assert operator.work(demand.family.format, dict(shape)).bytes > 0
