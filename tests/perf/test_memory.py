"""KV-cache capacity: exact where it follows from shapes, held against start-up logs where it is approximated.

The logs are lines that vLLM prints at start ("Available KV cache memory", "GPU KV cache size", "Model loading took"),
as public users posted them; what they did not set was vLLM's default for that GPU.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.perf.capture import capture_sizes
from fwopt.perf.kv_layout import kv_layout
from fwopt.perf.memory import CONTEXT_BYTES, KvCapacity, activation_bytes, kv_capacity, weight_bytes
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Int8, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.outcome import Rejected
from fwopt.targets import load_hardware, load_model
from fwopt.targets.quantization import native_quantization

GIB = 2**30
VLLM = EngineSpec()
H200 = load_hardware("h200").device
H100 = load_hardware("h100").device


def candidate(model, *, quantization=None, kv="bf16", batching=None, **split):
    return Candidate(
        quantization=quantization or native_quantization(model),
        kv_dtype=kv,
        parallelism=Parallelism(**split),
        batching=Batching(**(batching or {})),
    )


def fits(name, device=H200, engine=VLLM, **options) -> KvCapacity:
    model = load_model(name)
    found = kv_capacity(model, device, candidate(model, **options), engine)
    assert isinstance(found, KvCapacity), found
    return found


def refused(name, device=H200, **options) -> Rejected:
    model = load_model(name)
    found = kv_capacity(model, device, candidate(model, **options), VLLM)
    assert isinstance(found, Rejected)
    return found


# Facts that follow from the configs alone: 2 x layers x KV heads x head size x bytes, and 61 x (512 + 64) x 2 for MLA.
@pytest.mark.parametrize(
    ("name", "tp", "kv", "expected"),
    [
        ("Qwen/Qwen3-8B", 1, "bf16", 147_456),
        ("Qwen/Qwen3-8B", 1, "fp8", 73_728),
        ("Qwen/Qwen3-8B", 2, "bf16", 73_728),
        ("Qwen/Qwen3-8B", 16, "bf16", 18_432),
        ("meta-llama/Meta-Llama-3.1-70B", 1, "bf16", 327_680),
        ("meta-llama/Meta-Llama-3.1-8B", 1, "bf16", 131_072),
        ("Qwen/Qwen3-30B-A3B", 1, "bf16", 98_304),
        ("Qwen/Qwen3-30B-A3B", 8, "bf16", 24_576),
        ("deepseek-ai/DeepSeek-V3", 1, "bf16", 70_272),
        ("deepseek-ai/DeepSeek-V3", 8, "bf16", 70_272),
    ],
)
def test_kv_bytes_per_token(name, tp, kv, expected):
    layout = kv_layout(load_model(name), kv, Parallelism(tp=tp))
    assert (layout.full, layout.sliding) == (expected, 0)


def test_states_of_linear_attention_are_held_per_sequence_whatever_its_length():
    """Qwen3.5-397B on eight GPUs: 45 layers of 8 heads x 128 x 128 in fp32, and 3 tokens of 1,536 numbers in bf16."""
    model = load_model("Qwen/Qwen3.5-397B-A17B")
    layout = kv_layout(model, "bf16", Parallelism(tp=8))
    assert (layout.full, layout.sliding) == (15 * 2 * 256 * 2, 0)
    assert layout.state == 45 * (8 * 128 * 128 * 4 + 3 * 1536 * 2)
    assert kv_layout(model, "fp8", Parallelism(tp=8)).state == layout.state, "an fp8 KV cache leaves states alone"
    found = fits("Qwen/Qwen3.5-397B-A17B", quantization=Fp8(scale="block"), tp=8, ep=True)
    assert found.bytes_per_token == layout.full
    assert (found.block_size, found.sequence_blocks) == (528, 3), "a block of 15 layers holds the states of 15"
    assert found.max_concurrency(16) == found.blocks / (1 + found.sequence_blocks)


def test_pipeline_stages_split_the_kv_cache():
    assert kv_layout(load_model("Qwen/Qwen3-8B"), "bf16", Parallelism(pp=2)).full == 147_456 // 2


# "Model loading took": Qwen3-8B and -14B, Llama-3.1-8B, Qwen2.5-7B, Qwen3-30B-A3B, gpt-oss-120b
# (https://blog.huikang.dev/2025/12/28/vllm-logs.html), gpt-oss-20b (https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/),
# Qwen3-14B-AWQ (which also has zero points).
@pytest.mark.parametrize(
    ("name", "quantization", "gib"),
    [
        ("Qwen/Qwen3-8B", None, 15.27),
        ("Qwen/Qwen3-14B", None, 27.52),
        ("Qwen/Qwen3-14B", W4A16(), 9.44),
        ("Qwen/Qwen2.5-7B-Instruct", None, 14.29),
        ("meta-llama/Llama-3.1-8B-Instruct", None, 14.99),
        ("Qwen/Qwen3-30B-A3B", None, 56.93),
        ("openai/gpt-oss-120b", None, 65.97),
        ("openai/gpt-oss-20b", None, 13.72),
    ],
)
def test_weights_match_what_vllm_reports_to_have_loaded(name, quantization, gib):
    model = load_model(name)
    found = weight_bytes(model, quantization or native_quantization(model), Parallelism())
    assert found / GIB == pytest.approx(gib, rel=0.025)


# name, quantization, GPU, total GiB as logged, memory share, sequences, tokens, max length, version, KV GiB as logged
LOGS = [
    ("Qwen/Qwen3-8B", None, "rtx5090", 31.36, 0.92, 256, 2048, 32768, "0.24.0", 89_040 * 147_456 / GIB),
    ("Qwen/Qwen3-14B", None, "l40s", 44.39, 0.92, 256, 2048, None, "0.28.0", 11.57),
    ("Qwen/Qwen3-14B", W4A16(), "l40s", 44.39, 0.92, 256, 2048, None, "0.28.0", 29.63),
    ("Qwen/Qwen3-14B", W4A16(), "l40s", 44.39, 0.95, 8, 8192, 1024, "0.28.0", 31.02),
    ("meta-llama/Llama-3.1-8B-Instruct", None, "a100", 79.25, 0.92, 256, 2048, None, "0.31.0", 56.21),
    ("openai/gpt-oss-20b", None, "a100", 79.25, 0.65, 256, 2048, 131072, "0.19.0", 36.56),
]


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log[0]}-{log[2]}-{log[8]}")
def test_kv_cache_matches_startup_logs_within_two_percent(log):
    name, quantization, gpu, total, share, seqs, tokens, longest, version, gib = log
    device = load_hardware(gpu).device.model_copy(update={"memory_bytes": int(total * GIB)})
    limits = {
        "gpu_memory_utilization": share,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "max_model_len": longest,
    }
    found = fits(name, device, EngineSpec(version=version), quantization=quantization, batching=limits)
    assert found.kv_bytes_per_gpu / GIB == pytest.approx(gib, rel=0.02)


def test_gpt_oss_120b_log_is_met_within_three_quarters_of_a_gib():
    """0.11.2 on an H100, 0.96 of memory, 6 sequences, 2,048 tokens: 8.99 GiB (blog.huikang.dev, as above)."""
    limits = {
        "gpu_memory_utilization": 0.96,
        "max_num_seqs": 6,
        "max_num_batched_tokens": 2048,
        "max_model_len": 98_304,
    }
    found = fits("openai/gpt-oss-120b", H100, EngineSpec(version="0.11.2"), batching=limits)
    assert found.kv_bytes_per_gpu / GIB == pytest.approx(8.99, abs=0.75)


def test_terms_add_up_to_the_requested_share():
    found = fits("Qwen/Qwen3-8B")
    spent = found.weight_bytes_per_gpu + found.activation_bytes + found.graph_bytes + found.non_torch_bytes
    assert spent + found.kv_bytes_per_gpu == int(H200.memory_bytes * 0.92)
    assert found.tokens * found.bytes_per_token <= found.kv_bytes_per_gpu
    assert found.max_concurrency(40_960) == pytest.approx(found.tokens / 40_960)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b"]), st.data())
def test_more_budget_never_means_more_blocks(name, data):
    limits = st.integers(9, 16).map(lambda e: 2**e)
    small, large = sorted(data.draw(st.tuples(limits, limits)))
    seqs = data.draw(st.sampled_from([64, 256, 1024]))
    model = load_model(name)
    least, most = ({"max_num_batched_tokens": t, "max_num_seqs": seqs} for t in (small, large))
    assert activation_bytes(model, candidate(model, batching=least)) <= activation_bytes(
        model, candidate(model, batching=most)
    )
    assert fits(name, batching=least).blocks >= fits(name, batching=most).blocks
    fewer = {"max_num_batched_tokens": small, "max_num_seqs": seqs // 2}
    assert fits(name, batching=fewer).blocks >= fits(name, batching=least).blocks


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "openai/gpt-oss-120b"])
def test_more_gpus_more_blocks_and_less_weight_each(name):
    one, two, four = (fits(name, tp=tp) for tp in (1, 2, 4))
    assert one.blocks < two.blocks < four.blocks
    assert one.weight_bytes_per_gpu > two.weight_bytes_per_gpu > four.weight_bytes_per_gpu


def test_fp8_cache_doubles_the_tokens_and_fewer_bits_leave_more_room():
    bf16, fp8 = fits("Qwen/Qwen3-8B"), fits("Qwen/Qwen3-8B", kv="fp8")
    assert fp8.blocks == pytest.approx(2 * bf16.blocks, rel=0.001)
    sizes = [
        fits("Qwen/Qwen3-8B", quantization=q).weight_bytes_per_gpu
        for q in (Bf16(), Int8(), Fp8(scale="block"), W4A16())
    ]
    assert sizes[0] > sizes[1] > sizes[3]
    assert sizes[1] == pytest.approx(sizes[2], rel=0.001)


def test_expert_parallel_and_sliced_experts_weigh_the_same_and_dp_replicates_attention():
    model = load_model("Qwen/Qwen3-30B-A3B")
    sliced = weight_bytes(model, Bf16(), Parallelism(tp=4))
    whole = weight_bytes(model, Bf16(), Parallelism(tp=4, ep=True))
    spread = weight_bytes(model, Bf16(), Parallelism(dp=4, ep=True))
    assert sliced == whole < spread


def test_sliding_layers_make_long_sequences_cheap_but_never_promise_more_than_the_pool():
    found = fits("openai/gpt-oss-20b", batching={"max_num_seqs": 32})
    layout = kv_layout(load_model("openai/gpt-oss-20b"), "bf16", Parallelism())
    assert found.bytes_per_token == layout.full == layout.sliding
    assert found.sequence_blocks == 9  # a window of 128 tokens and one block beyond, as many bytes as nine full blocks
    aside = 2 * 8192 * layout.sliding  # two steps in flight
    assert found.tokens * layout.full + aside <= found.kv_bytes_per_gpu
    wide = fits("google/gemma-4-26B-A4B", batching={"max_model_len": 4096})  # the window is a quarter of the longest
    both = kv_layout(load_model("google/gemma-4-26B-A4B"), "bf16", Parallelism())
    assert wide.bytes_per_token == both.full + both.sliding
    assert wide.sequence_blocks == 0


def test_a_model_that_does_not_fit_says_what_it_needs_and_has():
    found = refused("meta-llama/Meta-Llama-3.1-70B", H100)
    assert (found.rung, found.unit) == ("memory", "bytes")
    assert found.need > 130 * GIB > found.have > 70 * GIB


def test_a_context_that_does_not_fit_is_refused_as_vllm_does():
    found = refused("meta-llama/Meta-Llama-3.1-8B", load_hardware("l4").device, quantization=Fp8())
    assert found.reason == "the KV cache cannot hold one sequence of max_model_len"
    assert found.need == 131_072 * 131_072
    fits(
        "meta-llama/Meta-Llama-3.1-8B",
        load_hardware("l4").device,
        quantization=Fp8(),
        batching={"max_model_len": 8192},
    )


def test_a_share_that_leaves_no_room_for_the_context_is_refused():
    assert "CUDA context" in refused("Qwen/Qwen3-8B", batching={"gpu_memory_utilization": 1.0}).reason


def test_a_broken_split_is_refused_with_its_rule():
    assert refused("Qwen/Qwen3-8B", tp=64).reason == "attention heads are not divisible by tp"


def test_graphs_are_subtracted_since_0_21():
    assert fits("Qwen/Qwen3-8B", engine=EngineSpec(version="0.20.1")).graph_bytes == 0
    assert fits("Qwen/Qwen3-8B", engine=EngineSpec(version="0.21.0")).graph_bytes > 0


def test_capture_sizes_are_vllm_defaults():
    """51 sizes up to 512 (its logs: "PIECEWISE=51 (largest=512)"), twice the sequences when that is less."""
    sizes = capture_sizes("vllm", Batching(max_num_seqs=256), 512).tolist()
    assert (len(sizes), sizes[:5], sizes[-1]) == (51, [1, 2, 4, 8, 16], 512)
    assert sum(s <= 256 for s in sizes) == 35  # "FULL=35 (largest=256)"
    assert capture_sizes("vllm", Batching(max_num_seqs=8), 512)[-1] == 16


def test_sglangs_share_covers_weights_and_cache_alone():
    """Its activations and graphs live outside mem_fraction_static, so the same share holds more tokens than vLLM's."""
    model = load_model("Qwen/Qwen3-8B")
    chosen = Candidate(batching=Batching(gpu_memory_utilization=0.85))
    vllm, sglang = (
        kv_capacity(model, H200, chosen, EngineSpec(name=name, version=version))
        for name, version in (("vllm", "0.24.0"), ("sglang", "0.5.14"))
    )
    assert isinstance(vllm, KvCapacity)
    assert isinstance(sglang, KvCapacity)
    free = H200.memory_bytes - CONTEXT_BYTES["one"]  # a share of what is free once CUDA is up
    assert sglang.kv_bytes_per_gpu == int(free * 0.85) - sglang.weight_bytes_per_gpu
    assert sglang.activation_bytes == sglang.graph_bytes == sglang.non_torch_bytes == 0
    assert sglang.kv_bytes_per_gpu > vllm.kv_bytes_per_gpu
