"""Weights on disk and in memory, against files that others made."""

import json

import pytest

from fwopt.spec.candidate import Gguf, Parallelism
from fwopt.targets import load_model
from fwopt.targets.models import find_config
from fwopt.targets.quantization import native_quantization
from fwopt.targets.weights import parameter_count, weight_bytes

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("format", "gib"),
    [
        ("F16", 14.96),
        ("Q8_0", 7.95),
        ("Q6_K", 6.14),
        ("Q5_K_M", 5.33),
        ("Q5_K_S", 5.21),
        ("Q4_K_M", 4.58),
        ("Q4_K_S", 4.36),
    ],
)
def test_gguf_files_of_llama_weigh_what_llama_cpp_says(format, gib):
    """Sizes from llama.cpp's `tools/quantize/README.md`, embedding and head included."""
    model = load_model("meta-llama/Meta-Llama-3.1-8B")
    assert weight_bytes(model, Gguf(type=format), Parallelism()) / 2**30 == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(
    ("format", "tensor_bytes", "within"),
    [
        ("F16", 269_100_288, 1e-3),
        ("Q8_0", 143_025_408, 1e-3),
        ("Q4_1", 96_576_768, 1e-3),
        ("Q4_0", 89_941_248, 1e-3),
        ("Q4_K_M", 103_668_480, 0.03),
    ],
)
def test_a_tied_embedding_is_stored_as_the_head_and_narrow_rows_fall_back(tmp_path, format, tensor_bytes, within):
    """SmolLM2-135M, written by llama-quantize: its embedding is Q8_0 in each, for 256 does not divide 576."""
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    stored = weight_bytes(load_model(str(tmp_path)), Gguf(type=format), Parallelism())
    assert stored == pytest.approx(tensor_bytes, rel=within)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
PACKED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}}},
}


def asymmetric(packed: dict) -> dict:
    group = packed["config_groups"]["group_0"]
    return packed | {"config_groups": {"group_0": {"weights": group["weights"] | {"symmetric": False}}}}


@pytest.mark.parametrize(
    ("stated", "bits"),
    [
        (AWQ, 4),
        (AWQ | {"zero_point": False}, 0),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False}, 4),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, 4),  # the files hold them all the same
        (PACKED, 0),
        (asymmetric(PACKED), 4),
    ],
)
def test_zero_points_of_4_bit_groups_weigh_something(tmp_path, stated, bits):
    """compressed-tensors 0.20 packs 512 x 1024 weights in 262,144 bytes, 8,192 of scales and 2,048 of zero points."""
    config = json.loads(find_config("Qwen/Qwen3-8B")[0].read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    model = load_model(str(tmp_path))
    weights = 36 * ((32 + 2 * 8) * 128 * 4096 + 32 * 128 * 4096 + 3 * 12288 * 4096)
    rest = 2 * 151_936 * 4096 * 2 + (36 * 2 + 1) * 4096 * 2
    assert (
        weight_bytes(model, native_quantization(model), Parallelism()) == weights * (4 + (16 + bits) / 128) / 8 + rest
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen/Qwen3.5-27B", 26_895_998_464),
        ("deepseek-ai/DeepSeek-V3", 671_026_404_352),
        ("google/gemma-4-26B-A4B", 25_233_141_760),
        ("openai/gpt-oss-20b", 20_914_757_184),
        ("openai/gpt-oss-120b", 116_829_156_672),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
    ],
)
def test_parameters_are_those_that_transformers_builds(name, parameters):
    """Counted in transformers 5.19 on torch's meta device, text model alone: what is left out is below 0.01 %."""
    assert parameter_count(load_model(name)) == pytest.approx(parameters, rel=1e-4)
