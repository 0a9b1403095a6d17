"""Bounds are bounds: no grid, and so no simulation, is ever faster."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.perf.bound import StepBound, minimum_replicas, request_seconds
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Int8, Mxfp4, Parallelism
from fwopt.workload.columns import Workload

CASES = [
    (model, quantization, kv, Parallelism(tp=tp, ep=ep))
    for model, schemes, spread in (
        ("Qwen/Qwen3-8B", (Bf16(), Fp8(), Fp8(scale="block"), Int8(), W4A16()), ((1, False), (4, False))),
        ("Qwen/Qwen3-30B-A3B", (Bf16(), Fp8(scale="block"), W4A16()), ((1, False), (4, True))),
        ("openai/gpt-oss-20b", (Mxfp4(),), ((1, False), (8, False))),
        ("deepseek-ai/DeepSeek-V3", (Fp8(scale="block"),), ((8, False), (8, True))),
        ("google/gemma-4-26B-A4B", (Bf16(),), ((1, False),)),
        ("Qwen/Qwen3.5-35B-A3B", (Bf16(), Fp8(scale="block")), ((1, False), (4, True))),
        ("moonshotai/Kimi-K2.5", (W4A16(group_size=32, scope="experts"),), ((8, False), (8, True))),
    )
    for quantization in schemes
    for kv in ("bf16", "fp8")
    for tp, ep in spread
]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("device", ["h100", "h200"])
def test_no_grid_is_below_its_bound(cost_of, device, engine):
    for model, quantization, kv, parallelism in CASES:
        candidate = Candidate(quantization=quantization, kv_dtype=kv, parallelism=parallelism)
        cost = cost_of(model, device, engine)
        grid, bound = cost.grid(candidate), StepBound.of(cost.model, cost.device, candidate)
        where = f"{model} {candidate.label}"
        assert (bound.token_s(grid.tokens) <= grid.token_graph_s).all(), where
        assert (bound.sample_s(grid.sample_batch) <= grid.sample_s).all(), where
        decode = bound.decode_s(grid.decode_batch[:, None], grid.decode_context)
        total = decode + bound.token_s(grid.decode_batch)[:, None]
        have = grid.decode_s + np.interp(grid.decode_batch, grid.tokens, grid.token_graph_s)[:, None]
        assert (total <= have).all(), where
        prefill = bound.prefill_s(grid.prefill_length) + bound.token_s(grid.prefill_length)
        have = grid.prefill_s + np.interp(grid.prefill_length, grid.tokens, grid.token_graph_s)
        inside = (grid.prefill_length > 0) & (grid.prefill_length <= grid.tokens[-1])
        assert (prefill[inside] <= have[inside]).all(), where


def _workload(prompts, outputs, blocks=(), block_tokens=0, gap_s=1.0):
    n = len(prompts)
    owned = [list(b) for b in blocks] or [[] for _ in range(n)]
    nothing = np.zeros(n, dtype=np.int16)
    return Workload(
        name="t",
        source_format="test",
        arrival_s=np.arange(n) * gap_s,
        prompt_tokens=np.asarray(prompts, dtype=np.int32),
        output_tokens=np.asarray(outputs, dtype=np.int32),
        max_tokens=np.zeros(n, dtype=np.int32),
        block_tokens=block_tokens,
        block_offsets=np.cumsum([0, *map(len, owned)]),
        block_ids=np.asarray([i for b in owned for i in b], dtype=np.int32),
        session=np.full(n, -1, dtype=np.int32),
        parent=np.full(n, -1, dtype=np.int32),
        model=nothing - 1,
        models=(),
        adapter=nothing - 1,
        adapters=(),
        tools=nothing,
        digest="0" * 16,
    )


@given(
    requests=st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 2_000)), min_size=1, max_size=30),
    seqs=st.sampled_from([1, 16, 1024]),
)
@settings(max_examples=40, deadline=None)
def test_serving_alone_never_beats_the_bound_of_sharing(cost_of, requests, seqs):
    """One request after the other, on the grid's own times, is one schedule there is: the bound must not exceed it."""
    cost = cost_of("Qwen/Qwen3-8B", "h200", "vllm")
    candidate = Candidate(batching=Batching(max_num_seqs=seqs))
    grid, bound = cost.grid(candidate), StepBound.of(cost.model, cost.device, candidate)
    spent = 0.0
    for prompt, output in requests:
        spent += np.interp(prompt, grid.tokens, grid.token_graph_s) + np.interp(
            prompt, grid.prefill_length, grid.prefill_s
        )
        step = grid.token_graph_s[0] + np.interp(prompt, grid.decode_context, grid.decode_s[0]) + grid.sample_s[0]
        spent += (output - 1) * step + grid.sample_s[0]
    workload = _workload(*zip(*requests, strict=True))
    assert request_seconds(bound, workload, candidate).sum() <= spent


def test_a_prefix_seen_before_costs_nothing_and_replicas_follow_the_load(cost_of):
    cost = cost_of("Qwen/Qwen3-8B", "h200", "vllm")
    candidate = Candidate()
    bound = StepBound.of(cost.model, cost.device, candidate)
    fresh = _workload([8192, 8192], [1, 1], [[0, 1], [2, 3]], 4096)
    again = _workload([8192, 8192], [1, 1], [[0, 1], [0, 1]], 4096)
    first, second = request_seconds(bound, again, candidate)
    assert second < first / 100
    assert request_seconds(bound, fresh, candidate)[1] == pytest.approx(first, rel=0.01)
    off = candidate.model_copy(update={"batching": Batching(prefix_caching=False)})
    assert request_seconds(bound, again, off)[1] == pytest.approx(first, rel=0.01)
    busy = _workload([8192] * 500, [1] * 500, gap_s=0.01)
    needed = minimum_replicas(bound, busy, candidate, drain_s=0.5)
    assert needed > 5
    assert minimum_replicas(bound, busy, candidate, drain_s=500.0) < 1
    assert minimum_replicas(bound, busy, candidate, drain_s=0.5, served_share=0.5) == pytest.approx(needed / 2)


def test_a_lone_request_is_bounded_by_weights_and_flops(cost_of):
    cost = cost_of("Qwen/Qwen3-8B", "h200", "vllm")
    bound = StepBound.of(cost.model, cost.device, Candidate())
    weights_s = 15.1e9 / cost.device.bandwidth_bytes_per_s
    assert bound.tpot_s(1) == pytest.approx(weights_s, rel=0.03)
    assert bound.ttft_s(8192) > 2 * 6.9e9 * 8192 / cost.device.bf16_flops
    assert bound.ttft_s(8192, cached_tokens=8000) < bound.ttft_s(8192) / 3
