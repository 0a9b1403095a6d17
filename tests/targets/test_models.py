"""Models from config.json: published facts come out, and what is unknown is named."""

import json
import shutil
from pathlib import Path

import pytest

from fwopt.errors import InputError, UnknownNameError
from fwopt.spec.candidate import W4A16, Parallelism
from fwopt.targets import load_model, models
from fwopt.targets.models import SAME_CONFIG, catalogue_models
from fwopt.targets.parsers import NOT_MODELLED
from fwopt.targets.quantization import native_quantization
from fwopt.targets.weights import parameter_count, weight_bytes

# Totals as the publishers state them: model cards of Qwen3, Llama 3.1 (safetensors totals), Mixtral, gpt-oss,
# DeepSeek-V3 (671B without the multi-token-prediction module), Qwen2.5, MiniMax-M2.
PUBLISHED_BILLIONS = {
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-4B": 4.02,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-14B": 14.77,
    "Qwen/Qwen3-32B": 32.76,
    "Qwen/Qwen3-30B-A3B": 30.53,
    "Qwen/Qwen3-235B-A22B": 235.1,
    "Qwen/Qwen2.5-7B-Instruct": 7.62,
    "Qwen/Qwen2.5-72B-Instruct": 72.7,
    "meta-llama/Meta-Llama-3.1-8B": 8.03,
    "meta-llama/Meta-Llama-3.1-70B": 70.55,
    "meta-llama/Meta-Llama-3.1-405B": 405.9,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "mistralai/Mixtral-8x7B-v0.1": 46.7,
    "mistralai/Mixtral-8x22B-v0.1": 140.6,
    "openai/gpt-oss-20b": 20.9,
    "openai/gpt-oss-120b": 116.8,
    "deepseek-ai/DeepSeek-V3": 671.0,
    "google/gemma-4-26B-A4B": 25.2,
    "MiniMaxAI/MiniMax-M2.5": 230.0,
    "Qwen/Qwen3.5-27B": 27.0,
    "Qwen/Qwen3.5-35B-A3B": 35.0,
    "Qwen/Qwen3.5-397B-A17B": 397.0,
}


@pytest.fixture(autouse=True)
def _no_local_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_parameter_totals_match_what_was_published(name, billions):
    assert parameter_count(load_model(name)) / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_catalogue_entry_loads_or_says_which_architecture_is_not_modelled():
    refused = []
    for name in [*catalogue_models(), *SAME_CONFIG]:
        try:
            model = load_model(name)
        except InputError as error:
            refused.append(str(error))
        else:
            assert model.name == name
            assert len(model.config_digest) == 16
    assert len(refused) == 5
    assert all(any(f"'{architecture}'" in line for architecture in NOT_MODELLED) for line in refused)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("llama-3.1-70b-instruct", "meta-llama/Llama-3.1-70B-Instruct"),
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B"),
        ("GPT-OSS-20B", "openai/gpt-oss-20b"),
    ],
)
def test_names_ignore_case_and_organisation_and_keep_the_name_to_serve(asked, served):
    assert load_model(asked).name == served


def test_instruct_variant_shares_the_base_model_shape():
    base, instruct = load_model("meta-llama/Meta-Llama-3.1-70B"), load_model("meta-llama/Llama-3.1-70B-Instruct")
    assert instruct.layers == base.layers
    assert instruct.config_digest == base.config_digest


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown model 'qwen3-8bb'; nearest: .*Qwen3-8B"):
        load_model("qwen3-8bb")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Qwen/Qwen3-8B", "bf16"),
        ("Qwen/Qwen3-32B-FP8", "fp8"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "fp8"),
        ("deepseek-ai/DeepSeek-R1", "fp8"),
        ("openai/gpt-oss-120b", "mxfp4"),
        ("moonshotai/Kimi-K2.5", "w4a16"),
    ],
)
def test_native_quantization_is_that_of_the_published_weights(name, kind):
    assert native_quantization(load_model(name)).kind == kind


def test_block_and_tensor_fp8_are_told_apart():
    assert native_quantization(load_model("deepseek-ai/DeepSeek-V3")).scale == "block"
    assert native_quantization(load_model("nvidia/Llama-3.1-70B-Instruct-FP8")).scale == "tensor"


def test_kimi_has_4_bit_experts_beside_bf16_and_weighs_what_was_published():
    """The checkpoint's files hold 595 GB; its report speaks of 1.04 trillion parameters."""
    kimi = load_model("moonshotai/Kimi-K2.5")
    native = native_quantization(kimi)
    assert native == W4A16(group_size=32, scope="experts")
    assert parameter_count(kimi) / 1e12 == pytest.approx(1.04, rel=0.015)
    assert weight_bytes(kimi, native, Parallelism()) / 1e9 == pytest.approx(595, rel=0.005)
    assert [(g.count, g.mlp.kind) for g in kimi.layers] == [(1, "dense"), (60, "moe")]
    assert "text model only" in kimi.source


def test_three_layers_of_qwen3_5_in_four_have_linear_attention():
    linear, full = load_model("Qwen/Qwen3.5-397B-A17B").layers
    assert (linear.count, full.count) == (45, 15)
    a = linear.attention
    assert (a.key_heads, a.value_heads, a.value_head_dim, a.conv_tokens, a.state_dtype) == (16, 64, 128, 4, "fp32")
    assert (full.attention.heads, full.attention.kv_heads, full.attention.output_gate) == (32, 2, True)
    assert full.mlp.shared_intermediate_size == 1024


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"layer_types": ["linear_attention"] * 64}, "layer_types"),
     ({"num_hidden_layers": 3, "layer_types": None}, "full_attention_interval")],
)  # fmt: skip
def test_linear_attention_alone_is_refused(tmp_path, changed, field):
    stored = Path(models.__file__).parent / "data" / "models" / "Qwen--Qwen3.5-27B.json"
    config = json.loads(stored.read_text(encoding="utf-8"))
    config["text_config"] |= changed
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=f"{field}: models without a layer of full attention are not modelled"):
        load_model(str(tmp_path))


def _int4(ignore):
    weights = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
        "ignore": ignore,
    }


def test_what_a_4_bit_checkpoint_ignores_decides_its_scheme(tmp_path):
    def stored(ignore):
        return load_model(str(written(tmp_path, quantization_config=_int4(ignore)))).checkpoint_quantization

    outside = [r"re:.*self_attn.*", r"re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"]
    assert stored(["lm_head"]) == "int4_group"
    assert stored(["lm_head", *outside]) == "int4_experts"
    for partial in (outside[:1], [*outside, r"re:.*experts.*"]):
        with pytest.raises(InputError, match="ignore: 4-bit weights in some layers but not in others"):
            stored(partial)
    with pytest.raises(InputError, match=r"'re:\(' is not a regular expression"):
        stored(["re:("])


def test_layers_of_mixed_models():
    gpt_oss = load_model("openai/gpt-oss-20b")
    assert [(g.count, g.attention.window_tokens) for g in gpt_oss.layers] == [(12, 128), (12, None)]
    assert all(g.attention.qkv_bias for g in gpt_oss.layers)
    deepseek = load_model("deepseek-ai/DeepSeek-V3")
    assert [(g.count, g.mlp.kind) for g in deepseek.layers] == [(3, "dense"), (58, "moe")]
    assert deepseek.layers[1].mlp.shared_intermediate_size == 2048
    gemma = load_model("google/gemma-4-26B-A4B")
    sliding, full = gemma.layers
    assert (sliding.count, sliding.attention.head_dim, sliding.attention.window_tokens) == (25, 256, 1024)
    assert (full.count, full.attention.head_dim, full.attention.kv_heads, full.attention.shared_kv) == (5, 512, 2, True)
    assert full.mlp.shared_intermediate_size == 2112
    assert "text model only" in gemma.source


BASE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}


def written(folder: Path, **changes) -> Path:
    values = {k: v for k, v in {**BASE, **changes}.items() if v is not ...}
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    return file


def test_sparse_step_and_dense_exceptions_decide_each_layer(tmp_path):
    model = load_model(str(written(tmp_path)))
    assert {g.mlp.kind: g.count for g in model.layers} == {"dense": 4, "moe": 2}


def test_a_folder_and_its_config_file_are_the_same_model(tmp_path):
    file = written(tmp_path)
    assert load_model(str(tmp_path)).config_digest == load_model(str(file)).config_digest


@pytest.mark.parametrize("field", [k for k in BASE if k not in ("decoder_sparse_step", "mlp_only_layers", "head_dim")])
def test_a_missing_field_is_named(tmp_path, field):
    if field == "num_key_value_heads":
        assert load_model(str(written(tmp_path, **{field: ...}))).layers[0].attention.kv_heads == 4
        return
    with pytest.raises(InputError, match=rf"{field}: this field is missing"):
        load_model(str(written(tmp_path, **{field: ...})))


@pytest.mark.parametrize("value", [0, -3, 1.5, "64", True, [64]])
def test_a_malformed_field_is_named_with_its_value(tmp_path, value):
    with pytest.raises(InputError, match=r"hidden_size: must be a positive integer, got"):
        load_model(str(written(tmp_path, hidden_size=value)))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"null"])
def test_files_that_are_no_config_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_folder_without_config_and_unknown_architecture(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match=r"no such file or folder"):
        load_model(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"architecture 'MambaForCausalLM' is not modelled; modelled are"):
        load_model(str(written(tmp_path, architectures=["MambaForCausalLM"])))


@pytest.mark.parametrize(
    ("section", "scheme", "group_size"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", None),
        ({"quant_method": "fp8"}, "fp8_tensor", None),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4_group", 64),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"type": "int", "num_bits": 8, "strategy": "channel"},
                        "input_activations": {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True},
                    }
                },
            },
            "int8_channel",
            None,
        ),
    ],
)
def test_published_quantization_is_recognised(tmp_path, section, scheme, group_size):
    model = load_model(str(written(tmp_path, quantization_config=section)))
    assert (model.checkpoint_quantization, model.checkpoint_group_size) == (scheme, group_size)


def test_unmodelled_quantization_is_an_error_not_a_guess(tmp_path):
    with pytest.raises(InputError, match=r"quant_method: this checkpoint scheme is not modelled"):
        load_model(str(written(tmp_path, quantization_config={"quant_method": "bitsandbytes"})))


def test_local_hugging_face_cache_comes_before_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "models--acme--tiny"
    for revision in ("old", "abc123"):
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        shutil.copy(written(tmp_path, vocab_size=1000 if revision == "old" else 2000), snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    model = load_model("acme/tiny")
    assert (model.vocab_size, model.source) == (2000, "Hugging Face cache, revision abc123")


def test_gemma3_text_config_uses_the_library_defaults(tmp_path):
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    )
    model = load_model(str(tmp_path))
    assert [(g.count, g.attention.window_tokens) for g in model.layers] == [(29, 1024), (5, None)]
    assert parameter_count(model) / 1e9 == pytest.approx(3.88, rel=0.01)  # 4.3 B with the vision tower
