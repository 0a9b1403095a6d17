"""How a checkpoint is stored: what its config leaves out of a scheme, or puts beside it, is not read as the whole."""

import json

import pytest

from fwopt.errors import InputError
from fwopt.targets import load_model
from fwopt.targets.models import find_config

DENSE, SPARSE, HYBRID = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3.5-35B-A3B"
PER_LAYER = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(36) for part in "qkvo"]
FLOAT, INT, SHORT = ({"type": kind, "num_bits": bits} for kind, bits in (("float", 8), ("int", 8), ("int", 4)))


@pytest.fixture
def stored(tmp_path):
    def read(base, section, field="quantization_config"):
        values = json.loads(find_config(base)[0].read_text())
        values.pop("quantization_config", None)
        (tmp_path / "config.json").write_text(json.dumps(values if section is None else values | {field: section}))
        return load_model(str(tmp_path)).checkpoint_quantization

    return read


def compressed(weights, *, strategy="channel", activations=True, ignore=("lm_head",), targets=("Linear",), **more):
    inputs = {"type": weights["type"], "num_bits": 8, "strategy": "token", "dynamic": True} if activations else None
    group = {"weights": weights | {"strategy": strategy} | more, "input_activations": inputs, "targets": list(targets)}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": list(ignore)}


def gptq(**dynamic):
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dynamic": dynamic}


@pytest.mark.parametrize(
    ("base", "section", "scheme"),
    [
        (DENSE, compressed(FLOAT), "fp8_tensor"),
        (SPARSE, compressed(FLOAT, ignore=["lm_head", r"re:.*mlp\.gate$"]), "fp8_tensor"),
        (DENSE, compressed(FLOAT, strategy="block", block_structure=[128, 128]), "fp8_block"),
        (DENSE, compressed(INT), "int8_channel"),
        (SPARSE, {"quant_method": "fp8", "modules_to_not_convert": ["gate", "e_score_correction_bias"]}, "fp8_tensor"),
        (
            HYBRID,
            {
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": [
                    "lm_head",
                    *(
                        f"model.language_model.layers.{i}.linear_attn.{part}"
                        for i in range(40)
                        for part in ("conv1d", "in_proj_a")
                    ),
                    *(
                        f"model.language_model.layers.{i}.mlp.{part}"
                        for i in range(40)
                        for part in ("gate", "shared_expert_gate")
                    ),
                    "model.visual.blocks.0.attn.qkv",
                ],
            },
            "fp8_block",
        ),
        (SPARSE, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "*.mlp.gate"]}, "fp8_tensor"),
        # routed experts alone: dynamic of Qwen3.5's own GPTQ checkpoints, and AWQ's parts of names
        (HYBRID, gptq(**{"lm_head": {}, "-:.*attn.*": {}, "-:.*shared_expert.*": {}, "-:.*mtp.*": {}}), "int4_experts"),
        (
            HYBRID,
            {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["attn", "shared_expert"]},
            "int4_experts",
        ),
        (DENSE, gptq(), "int4_group"),
    ],
)
def test_modules_that_no_scheme_quantizes_do_not_count(stored, base, section, scheme):
    assert stored(base, section) == scheme


@pytest.mark.parametrize(
    ("base", "section", "message"),
    [
        (DENSE, compressed(FLOAT, ignore=["lm_head", "re:.*self_attn.*"]), "ignore: 8-bit weights in some layers"),
        (DENSE, compressed(INT, ignore=["lm_head", "model.layers.35.mlp.down_proj"]), "ignore: 8-bit weights in some"),
        (DENSE, compressed(FLOAT, targets=[r"re:.*mlp\..*"]), "config_groups: 8-bit weights in some layers"),
        (DENSE, {"quant_method": "fp8", "ignored_layers": PER_LAYER}, "ignored_layers: fp8 weights in some layers"),
        (
            SPARSE,
            {"quant_method": "fp8", "modules_to_not_convert": ["self_attn"]},
            "modules_to_not_convert: fp8 weights",
        ),
        (
            DENSE,
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.*.self_attn*"]},
            "ignore: fp8 weights in some layers",
        ),
        (DENSE, gptq(**{"-:.*self_attn.*": {}}), "dynamic: 4-bit weights in some layers"),
        (DENSE, gptq(**{r"+:.*down_proj": {"bits": 8}}), "dynamic: settings of their own for some layers"),
        (DENSE, gptq() | {"lm_head": True}, "lm_head: a quantized LM head is not modelled"),
    ],
)
def test_a_checkpoint_that_is_quantized_in_part_is_refused(stored, base, section, message):
    with pytest.raises(InputError, match=message) as caught:
        stored(base, section)
    assert "\n" not in str(caught.value)


def test_several_schemes_in_one_checkpoint_are_refused(stored):
    """As `fwopt quantize` writes mixtures."""
    section = compressed(FLOAT, targets=["re:.*self_attn.*"])
    short = compressed(SHORT, strategy="group", group_size=128, activations=False, targets=[r"re:.*mlp\..*"])
    section["config_groups"]["group_1"] = short["config_groups"]["group_0"]
    with pytest.raises(InputError, match="config_groups: one group is modelled, several schemes"):
        stored(DENSE, section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (compressed(FLOAT, activations=False), "8-bit float weights with 16-bit activations"),
        (compressed(INT, activations=False), "8-bit int weights with 16-bit activations"),
        (compressed(SHORT, strategy="group", group_size=128), "4-bit int weights with quantized activations"),
        (compressed(FLOAT, strategy="block", block_structure=[64, 64]), "block_structure: only 128x128 blocks"),
        (compressed(INT, strategy="group", group_size=128), r"8-bit int weights \(group\) are not modelled"),
    ],
)
def test_what_products_compute_in_decides_too(stored, section, message):
    with pytest.raises(InputError, match=message):
        stored(DENSE, section)


def test_compression_config_is_read_as_quantization_config(stored):
    assert stored(DENSE, compressed(INT), field="compression_config") == "int8_channel"


def test_the_file_that_modelopt_writes_beside_config_json_counts(stored, tmp_path):
    """As vLLM reads it where config.json names no scheme."""
    scheme = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = {"producer": {"name": "modelopt", "version": "0.23.0"}, "quantization": scheme}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert stored(DENSE, None) == "fp8_tensor"
    assert stored(DENSE, compressed(INT)) == "int8_channel"
    assert stored(DENSE, beside) == "fp8_tensor"
    scheme["quant_algo"] = "NVFP4"
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    with pytest.raises(InputError, match="quant_algo: of ModelOpt's schemes FP8 alone is modelled, got 'NVFP4'"):
        stored(DENSE, None)
    for broken in ("{", "[1]"):
        (tmp_path / "hf_quant_config.json").write_text(broken)
        with pytest.raises(InputError, match=r"hf_quant_config\.json") as caught:
            stored(DENSE, None)
        assert "\n" not in str(caught.value)


FP8_CACHE = {"type": "float", "num_bits": 8, "dynamic": False}


@pytest.mark.parametrize(
    ("section", "asked"),
    [
        (compressed(FLOAT), None),
        (compressed(FLOAT) | {"kv_cache_scheme": FP8_CACHE}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": FP8_CACHE}, "fp8"),
        ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, None),
        ({"quant_method": "fp8", "kv_cache_scheme": FP8_CACHE}, None),
    ],
)
def test_a_checkpoint_may_ask_for_an_fp8_cache(stored, tmp_path, section, asked):
    stored(DENSE, section)
    assert load_model(str(tmp_path)).checkpoint_kv_dtype == asked


def test_other_quantized_caches_are_refused(stored):
    with pytest.raises(InputError, match="of quantized KV caches 8-bit float alone is modelled"):
        stored(DENSE, compressed(FLOAT) | {"kv_cache_scheme": {"type": "int", "num_bits": 8}})
