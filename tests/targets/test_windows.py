"""Which layers slide, by the fields that vLLM and transformers read."""

import json

import pytest

from fwopt.errors import InputError
from fwopt.targets import load_model
from fwopt.targets.models import find_config

S, F = "sliding_attention", "full_attention"


@pytest.fixture
def layers(tmp_path):
    def read(base, without=(), **changes):
        values = json.loads(find_config(base)[0].read_text()) | changes
        for field in without:
            values.pop(field, None)
        (tmp_path / "config.json").write_text(json.dumps(values))
        return [(g.count, g.attention.window_tokens) for g in load_model(str(tmp_path)).layers]

    return read


LLAMA, MISTRAL, SPARSE = "meta-llama/Meta-Llama-3.1-8B", "mistralai/Mistral-7B-Instruct-v0.3", "Qwen/Qwen3-30B-A3B"


@pytest.mark.parametrize("base", [LLAMA, MISTRAL])
def test_layer_types_say_which_layers_slide(layers, base):
    """`LlamaAttention` in vLLM 0.32; Mistral's layers are its own."""
    assert layers(base, sliding_window=4096, layer_types=[S, S, S, F] * 8) == [(24, 4096), (8, None)]
    assert layers(base, sliding_window=4096, layer_types=[F] * 32) == [(32, None)]
    assert layers(base, sliding_window=4096) == [(32, 4096)]
    assert layers(base, sliding_window=None) == [(32, None)]
    with pytest.raises(InputError, match="layer_types: 'chunked_attention' is not modelled"):
        layers(base, layer_types=["chunked_attention"] * 32)
    with pytest.raises(InputError, match="sliding_window: this field is missing"):
        layers(base, sliding_window=None, layer_types=[S, F] * 16)


def test_mistral_slides_by_default_and_llama_does_not(layers):
    assert layers(MISTRAL, without=["sliding_window"]) == [(32, 4096)]
    assert layers(LLAMA, without=["sliding_window"]) == [(32, None)]


def test_windows_of_sparse_qwen_models_are_refused_as_those_of_dense_ones(layers):
    with pytest.raises(InputError, match="use_sliding_window: mixed sliding windows of Qwen models are not modelled"):
        layers(SPARSE, use_sliding_window=True, sliding_window=4096)


def test_gemma_2_has_heads_of_256_unless_said_otherwise(tmp_path):
    """Not hidden size over heads: 2304 over 8 would be 288."""
    values = {
        "architectures": ["Gemma2ForCausalLM"],
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert {g.attention.head_dim for g in load_model(str(tmp_path)).layers} == {256}
