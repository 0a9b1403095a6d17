"""Step grids: every family, finite and positive, monotone where physics is, and true about how they are known."""

import threading

import numpy as np
import pytest

from fwopt.errors import UnmeasuredError
from fwopt.perf.cost import CostModel
from fwopt.perf.priors import load_overheads
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Int8, Mxfp4, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.targets import load_model
from fwopt.targets.quantization import native_quantization

FAMILIES = [
    ("Qwen/Qwen3-8B", Bf16(), "bf16", {}),
    ("meta-llama/Meta-Llama-3.1-70B", Fp8(), "fp8", {"tp": 8}),
    ("Qwen/Qwen3-30B-A3B", Fp8(scale="block"), "bf16", {"tp": 2, "ep": True}),
    ("Qwen/Qwen3-30B-A3B", Bf16(), "bf16", {"dp": 4, "ep": True}),
    ("mistralai/Mixtral-8x7B-v0.1", Int8(), "bf16", {"tp": 2}),
    ("openai/gpt-oss-120b", Mxfp4(), "bf16", {"tp": 4}),
    ("deepseek-ai/DeepSeek-V3", Fp8(scale="block"), "fp8", {"tp": 8, "ep": True}),
    ("google/gemma-4-26B-A4B", W4A16(), "bf16", {}),
    ("Qwen/Qwen3.5-27B", Bf16(), "fp8", {"tp": 2}),
    ("Qwen/Qwen3.5-397B-A17B", Fp8(scale="block"), "bf16", {"tp": 8, "ep": True}),
    ("moonshotai/Kimi-K2.5", W4A16(group_size=32, scope="experts"), "bf16", {"tp": 8}),
]
SURFACES = ("token_graph_s", "token_eager_s", "decode_s", "sample_s")
SHARES = ("token_share", "decode_share", "prefill_share", "sample_share")


def _candidate(quantization, kv, parallelism, **batching):
    return Candidate(
        quantization=quantization,
        kv_dtype=kv,
        parallelism=Parallelism(**parallelism),
        batching=Batching(**batching),
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("device", ["h100", "h200"])
@pytest.mark.parametrize(("model", "quantization", "kv", "parallelism"), FAMILIES)
def test_every_family_gets_a_finite_positive_grid(cost_of, engine, device, model, quantization, kv, parallelism):
    grid = cost_of(model, device, engine).grid(_candidate(quantization, kv, parallelism))
    for name in SURFACES:
        values = getattr(grid, name)
        assert np.isfinite(values).all(), name
        assert (values > 0).all() or name == "decode_s", name
    assert grid.prefill_s[0] == 0
    assert (np.diff(grid.prefill_s) >= 0).all()
    assert grid.prefill_s[-1] > 0
    for name in SHARES:
        share = getattr(grid, name)
        assert share.sum(-1) == pytest.approx(1.0)
        assert (share >= 0).all()
    for axis in (grid.tokens, grid.decode_batch, grid.decode_context, grid.prefill_length, grid.sample_batch):
        assert (np.diff(axis) > 0).all()
    assert grid.tokens[0] == 1
    assert grid.tokens[-1] >= 8192


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "meta-llama/Meta-Llama-3.1-70B"])
def test_more_tokens_and_longer_contexts_take_longer(cost_of, model):
    grid = cost_of(model, "h200", "vllm").grid(Candidate())
    tokens = grid.token_graph_s
    assert (tokens[1:] > 0.85 * np.maximum.accumulate(tokens)[:-1]).all()
    assert tokens[grid.tokens == 8192] > 4 * tokens[grid.tokens == 256]
    decode = grid.decode_s[:, grid.decode_context >= 1024]
    assert (decode[:, 1:] > 0.95 * decode[:, :-1]).all()
    assert (decode[:, -1] > 2 * decode[:, 0]).all()


def test_a_measured_model_rests_on_measurements_and_a_guessed_one_says_so(cost_of):
    cost = cost_of("Qwen/Qwen3-8B", "h200", "vllm")
    at = cost.tokens == 64
    assert cost.grid(Candidate()).token_share[at][0, :2].sum() > 0.85
    assert cost.grid(_candidate(W4A16(), "bf16", {})).token_share[at][0, 3] > 0.7


def test_one_step_of_llama_70b_adds_up_to_what_a_server_takes(cost_of):
    """InferenceX, H200, vLLM, fp8, tp 8, 4 in flight, 1k/1k tokens: 7.9 ms a token, measured."""
    grid = cost_of("meta-llama/Meta-Llama-3.1-70B", "h200", "vllm").grid(_candidate(Fp8(), "bf16", {"tp": 8}))
    step = (
        np.interp(4, grid.tokens, grid.token_graph_s)
        + np.interp(1400, grid.decode_context, grid.decode_s[grid.decode_batch == 4][0])
        + np.interp(4, grid.sample_batch, grid.sample_s)
    )
    assert step == pytest.approx(7.9e-3, rel=0.15)


def test_tensor_parallelism_pays_for_its_all_reduces(cost_of):
    cost = cost_of("meta-llama/Meta-Llama-3.1-70B", "h200", "vllm")
    one, eight = (cost.grid(_candidate(Bf16(), "bf16", {"tp": tp})) for tp in (1, 8))
    speed_up = one.token_graph_s[0] / eight.token_graph_s[0]
    assert 3 < speed_up < 8
    small = eight.tokens <= 512
    assert (eight.token_eager_s[small] - eight.token_graph_s[small] > 100 * 10e-6).all()


def test_a_longer_context_adds_to_latent_attention_what_it_adds_to_the_measured_module(cost_of, profile_of):
    """And nothing of the module's projections, which are counted as products."""
    cost = cost_of("deepseek-ai/DeepSeek-V3", "h200", "vllm")
    attention, c = cost.model.layers[0].attention, profile_of("h200", "vllm").columns("mla_decode_module")
    there = (c["heads"] == 16) & (c["kv_dtype"] == "bf16") & (c["dtype"] == "fp8_block")
    there &= c["batch"] == 64
    context = np.asarray([1025.0, 4097.0])
    measured = [float(c["p50_s"][there & (c["context"] == at)][0]) for at in context]
    found = cost._mla.decode(attention, 16, "fp8_block", "bf16", np.asarray([64.0]), context).seconds[0]
    assert found[1] - found[0] == pytest.approx(measured[1] - measured[0], rel=1e-4)
    assert 11e-6 < found[0] < 0.4 * measured[0]


def test_linear_attention_costs_the_same_at_every_context_and_by_the_token_in_prompts(cost_of):
    cost = cost_of("Qwen/Qwen3.5-27B", "h200", "vllm")
    linear, full = cost.model.layers
    (of_linear, prompt, _), (of_full, _, _) = (
        cost._attention_layer(group, Bf16(), Parallelism(), "bf16") for group in (linear, full)
    )
    assert (of_linear.seconds == of_linear.seconds[:, :1]).all()
    assert (np.diff(of_linear.seconds[:, 0]) >= 0).all()
    at = cost.contexts >= 65536
    assert (of_full.seconds[-1, at] > of_linear.seconds[-1, at]).all()
    long = np.interp([16384, 32768, 65536], cost.lengths, prompt.seconds)
    assert long[1:] / long[:-1] == pytest.approx([2, 2], rel=0.05)


def test_one_step_of_qwen3_5_397b_adds_up_to_what_a_server_takes(cost_of):
    """InferenceX, H200, SGLang 0.5.9, fp8, tp 8, ep 8, 1k/8k tokens: 9.4 ms a token at 4 in flight, 20.0 ms at 64."""
    cost = cost_of("Qwen/Qwen3.5-397B-A17B", "h200", "sglang")
    grid = cost.grid(_candidate(Fp8(scale="block"), "bf16", {"tp": 8, "ep": True}))
    for batch, measured in ((4, 9.4e-3), (64, 20.0e-3)):
        step = (
            np.interp(batch, grid.tokens, grid.token_graph_s)
            + np.interp(5000, grid.decode_context, grid.decode_s[grid.decode_batch == batch][0])
            + np.interp(batch, grid.sample_batch, grid.sample_s)
        )
        assert step == pytest.approx(measured, rel=0.2)


def test_one_step_of_kimi_k2_adds_up_to_what_a_server_takes(cost_of):
    """InferenceX, H200, vLLM 0.16, tp 8, 4 in flight, 1k/1k tokens: 10.3 to 10.4 ms a token, measured."""
    cost = cost_of("moonshotai/Kimi-K2.5", "h200", "vllm")
    grid = cost.grid(_candidate(native_quantization(cost.model), "bf16", {"tp": 8}))
    step = (
        np.interp(4, grid.tokens, grid.token_graph_s)
        + np.interp(1400, grid.decode_context, grid.decode_s[grid.decode_batch == 4][0])
        + np.interp(4, grid.sample_batch, grid.sample_s)
    )
    assert step == pytest.approx(10.35e-3, rel=0.15)
    assert grid.token_share[grid.tokens == 4][0, 3] == 0, "experts in 4 bits were measured at these very shapes"


def test_scheduler_limits_change_the_captured_sizes_only(cost_of):
    cost = cost_of("Qwen/Qwen3-8B", "h200", "vllm")
    few, many = cost.grid(_candidate(Bf16(), "bf16", {}, max_num_seqs=16)), cost.grid(Candidate())
    assert few.capture_sizes.tolist() == [1, 2, 4, 8, 16, 24, 32]
    assert many.capture_sizes[-1] == 512
    assert {240, 248, 256, 272} <= set(many.capture_sizes.tolist())
    assert 264 not in many.capture_sizes
    assert few.token_graph_s is many.token_graph_s or (few.token_graph_s == many.token_graph_s).all()


def test_what_cannot_be_modelled_is_refused_in_one_line(cost_of):
    cost = cost_of("Qwen/Qwen3-8B", "h200", "vllm")
    with pytest.raises(UnmeasuredError, match="pipeline"):
        cost.grid(_candidate(Bf16(), "bf16", {"pp": 2}))
    with pytest.raises(UnmeasuredError, match="heads"):
        cost.grid(_candidate(Bf16(), "bf16", {"tp": 5}))
    with pytest.raises(UnmeasuredError, match="host overheads"):
        load_overheads("triton")


def test_threads_share_one_model_and_agree(profile_of, h200):
    cost = CostModel(load_model("Qwen/Qwen3-30B-A3B"), h200, EngineSpec(), profile_of("h200", "vllm"))
    candidates = [_candidate(Bf16(), "bf16", {"tp": tp}, max_num_seqs=seqs) for tp in (1, 2, 4) for seqs in (8, 64)]
    found = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda out=out: out.extend(map(cost.grid, candidates))) for out in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grids in found[1:]:
        for a, b in zip(found[0], grids, strict=True):
            assert (a.token_graph_s == b.token_graph_s).all()
            assert (a.decode_s == b.decode_s).all()
