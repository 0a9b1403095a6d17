"""The baseline is what the engine does where nobody sets anything."""

from types import SimpleNamespace

import pytest

from fwopt.search.defaults import default_baseline
from fwopt.search.derive import derive_space
from fwopt.search.space import SpaceOverrides
from fwopt.targets import load_hardware, load_model


@pytest.mark.parametrize(
    ("asked", "engine", "overrides", "kv_dtype"),
    [
        (None, "vllm", SpaceOverrides(), "bf16"),
        ("fp8", "vllm", SpaceOverrides(), "fp8"),
        ("fp8", "sglang", SpaceOverrides(), "bf16"),
        ("fp8", "vllm", SpaceOverrides(kv_dtypes=("bf16",)), "bf16"),
    ],
)
def test_vllm_keeps_the_cache_as_the_checkpoint_asks(asked, engine, overrides, kv_dtype):
    model = load_model("nvidia/Llama-3.1-70B-Instruct-FP8").model_copy(update={"checkpoint_kv_dtype": asked})
    hardware = load_hardware("h200:2")
    space = derive_space(model, hardware, overrides)
    fits = SimpleNamespace(check=lambda candidate: None)
    baseline = default_baseline(space, model, hardware.device, fits, engine)
    assert baseline is not None
    assert baseline.kv_dtype == kv_dtype


@pytest.mark.parametrize(("asked", "block"), [(None, 16), ("fp8", 64)])
def test_latent_attention_over_an_fp8_cache_takes_blocks_of_64(asked, block):
    model = load_model("deepseek-ai/DeepSeek-V3").model_copy(update={"checkpoint_kv_dtype": asked})
    hardware = load_hardware("h200:8")
    fits = SimpleNamespace(check=lambda candidate: None)
    baseline = default_baseline(derive_space(model, hardware), model, hardware.device, fits)
    assert baseline is not None
    assert baseline.batching.block_size == block
