"""Which splits vLLM accepts; each refusal has fixed words."""

import pytest

from fwopt.spec.candidate import W4A16, Bf16, Fp8, Int8, Mxfp4, Parallelism
from fwopt.targets import load_model
from fwopt.targets.parallel import valid_parallelism

BLOCK = Fp8(scale="block")
EXPERTS = W4A16(group_size=32, scope="experts")


@pytest.mark.parametrize(
    ("model", "quantization", "split", "broken"),
    [
        ("Qwen/Qwen3-8B", Bf16(), {"tp": 8}, None),
        ("Qwen/Qwen3-8B", Bf16(), {"tp": 3}, "vocabulary is not divisible"),
        ("Qwen/Qwen3-14B", Bf16(), {"tp": 16}, "attention heads are not divisible"),
        ("Qwen/Qwen3-8B", Bf16(), {"pp": 40}, "more pipeline stages than layers"),
        ("Qwen/Qwen3-8B", Bf16(), {"dp": 2}, "use replicas"),
        ("Qwen/Qwen3-8B", Bf16(), {"ep": True}, "mixture-of-experts"),
        ("Qwen/Qwen3-8B", Mxfp4(), {}, "published in MXFP4"),
        ("Qwen/Qwen3-30B-A3B", Bf16(), {"tp": 8}, None),
        ("Qwen/Qwen3-30B-A3B", Bf16(), {"ep": True}, "at least two ranks"),
        ("Qwen/Qwen3-30B-A3B", BLOCK, {"tp": 2}, None),
        ("Qwen/Qwen3-30B-A3B", BLOCK, {"tp": 4}, "fp8 blocks"),
        ("Qwen/Qwen3-30B-A3B", BLOCK, {"tp": 4, "ep": True}, None),
        ("Qwen/Qwen3-30B-A3B", W4A16(), {"tp": 4}, "int4 group size"),
        ("Qwen/Qwen3-30B-A3B", W4A16(group_size=64), {"tp": 4}, None),
        ("Qwen/Qwen2.5-7B-Instruct", Bf16(), {"tp": 4}, None),
        ("Qwen/Qwen2.5-7B-Instruct", Bf16(), {"tp": 8}, "attention heads are not divisible"),
        ("openai/gpt-oss-120b", Mxfp4(), {"tp": 8}, None),
        ("openai/gpt-oss-120b", Bf16(), {"tp": 8}, "already quantized"),
        ("deepseek-ai/DeepSeek-V3", BLOCK, {"tp": 8}, None),
        ("deepseek-ai/DeepSeek-V3", BLOCK, {"tp": 1, "dp": 8, "ep": True}, None),
        ("deepseek-ai/DeepSeek-V3", Int8(), {"tp": 8}, "already quantized"),
        ("moonshotai/Kimi-K2.5", EXPERTS, {"tp": 8}, None),
        ("moonshotai/Kimi-K2.5", EXPERTS, {"tp": 1, "dp": 8, "ep": True}, None),
        ("moonshotai/Kimi-K2.5", W4A16(group_size=32), {"tp": 8}, "already quantized"),
        ("Qwen/Qwen3.5-397B-A17B", BLOCK, {"tp": 8, "ep": True}, None),
        ("Qwen/Qwen3.5-397B-A17B", Bf16(), {"tp": 32}, "attention heads are not divisible"),
        ("Qwen/Qwen3-8B", EXPERTS, {}, "published with 4-bit experts"),
        ("mistralai/Mixtral-8x7B-v0.1", Bf16(), {"tp": 4, "dp": 4, "ep": True}, "fewer experts"),
    ],
)
def test_rules(model, quantization, split, broken):
    found = valid_parallelism(load_model(model), quantization, Parallelism(**split))
    assert (found is None) if broken is None else (found is not None and broken in found)
