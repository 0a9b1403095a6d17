"""The longest sequence of a model, as vLLM 0.32 derives it (of scaled positions, what its `ModelConfig` says)."""

import json

import pytest

from fwopt.errors import InputError
from fwopt.targets import load_model
from fwopt.targets.models import find_config


@pytest.fixture
def context(tmp_path):
    def read(**changes):
        values = json.loads(find_config("meta-llama/Meta-Llama-3.1-8B")[0].read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        return load_model(str(tmp_path)).max_context_tokens

    return read


@pytest.mark.parametrize(
    ("stated", "rope", "served"),
    [
        (16384, {"type": "linear", "factor": 4.0}, 65536),  # deepseek-coder
        (4096, {"rope_type": "dynamic", "factor": 2.0}, 8192),
        (40960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 40960),
        (131072, {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072),
        (2048, None, 2048),
    ],
)
def test_scaled_positions_stretch_the_context(context, stated, rope, served):
    assert context(max_position_embeddings=stated, rope_scaling=rope) == served


def test_transformers_5_calls_the_section_otherwise(context):
    rope = {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}
    assert context(max_position_embeddings=4096, rope_scaling=None, rope_parameters=rope) == 8192


def test_base_models_of_qwen2_5_serve_more_than_their_instruct_variants():
    """Base models state 131,072; instruct models 32,768, to be stretched by YaRN where wanted (their model cards)."""
    base, instruct = load_model("Qwen/Qwen2.5-7B"), load_model("Qwen/Qwen2.5-7B-Instruct")
    assert (base.max_context_tokens, instruct.max_context_tokens) == (131_072, 32_768)
    assert base.layers == instruct.layers


@pytest.mark.parametrize("factor", [0, -2.0, "4", True])
def test_a_factor_that_is_none_is_named(context, factor):
    with pytest.raises(InputError, match="rope_scaling: factor: must be a positive number, got"):
        context(rope_scaling={"type": "linear", "factor": factor})
