"""Checkpoints that others quantized: read as levels times scales, or refused with the reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwopt.errors import FwoptError
from fwopt.quality.schemes import SCHEMES
from fwopt.quality.stored import StoredConfig, StoredShards, stored_scheme
from fwopt.quantize.write import Writer, appearing

ASYMMETRIC = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}


def quiet(*_):
    return None


@pytest.fixture
def written(model_folder, tmp_path):
    with appearing(tmp_path / "w") as work:
        Writer(model_folder("llama", torch.bfloat16), SCHEMES["int8"], quiet).write(work)
    return tmp_path / "w"


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def group_of(config):
    return config["quantization_config"]["config_groups"]["group_0"]


def test_zero_points_are_taken_off(model_folder, written):
    """As AWQ stores them: (level - zero point) times scale."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**ASYMMETRIC)
    weight = load_file(model_folder("llama", torch.bfloat16) / "model.safetensors")[
        "model.layers.0.mlp.down_proj.weight"
    ]
    groups = weight.reshape(len(weight), -1, 64)
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    packed = BaseCompressor.get_value_from_registry("pack-quantized").compress(state, scheme)
    tensors = load_file(written / "model.safetensors")
    for part in ("weight", "weight_scale"):
        del tensors[f"model.layers.0.mlp.down_proj.{part}"]
    tensors |= {f"model.layers.0.mlp.down_proj.{key}": value.contiguous() for key, value in packed.items()}
    save_file(tensors, written / "model.safetensors", {"format": "pt"})

    def described(config):
        values = config["quantization_config"]
        values["config_groups"]["group_1"] = {
            "targets": ["re:.*down_proj"], "weights": ASYMMETRIC, "format": "pack-quantized"
        }  # fmt: skip

    edit(written, described)
    levels = torch.round(groups.float() / scale.float()[..., None] + zero.float()[..., None]).clamp(-8, 7)
    expected = ((levels - zero.float()[..., None]) * scale.float()[..., None]).reshape(weight.shape)
    shards = StoredShards(written, StoredConfig.read(written))
    with shards.slices(["model.layers.0.mlp.down_proj.weight"]) as found:
        error = (found["model.layers.0.mlp.down_proj.weight"] - expected).abs()
    assert (error > scale.float().repeat_interleave(64, 1) * 1.01).sum() == 0
    assert (error == 0).float().mean() > 0.97  # the library divides in bf16: now and then the next level


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.pop("quantization_config"), "must be a compressed-tensors checkpoint, but it is not quantized"),
        (lambda c: c["quantization_config"].update(quant_method="gptq"), "but quant_method is gptq"),
        (lambda c: c.update(hidden_size=64), "hidden_size is 64, of the unquantized model 128"),
        (lambda c: c.update(vocab_size=321), "vocab_size is 321, of the unquantized model 320"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(change, problem, written, model_folder, tmp_path):
    edit(written, change)
    with pytest.raises(FwoptError, match=problem):
        stored_scheme(written, model_folder("llama", torch.bfloat16), tmp_path)


def test_other_tokens_are_refused(written, model_folder, tmp_path):
    path = written / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model"]["vocab"]["other"] = values["model"]["vocab"].pop("w300")
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(FwoptError, match="has other tokens than"):
        stored_scheme(written, model_folder("llama", torch.bfloat16), tmp_path)


def test_fixed_scales_of_activations_are_refused(written):
    edit(written, lambda c: group_of(c)["input_activations"].update(dynamic=False, strategy="tensor"))
    with pytest.raises(FwoptError, match="have fixed or asymmetric scales"):
        StoredConfig.read(written).activations("model.layers.0.mlp.down_proj")


def test_a_layer_that_no_group_names_is_refused(written):
    edit(written, lambda c: group_of(c).update(targets=["re:.*up_proj"]))
    shards = StoredShards(written, StoredConfig.read(written))
    with (
        pytest.raises(FwoptError, match="down_proj is quantized, but no config group"),
        shards.slices(["model.layers.0.mlp.down_proj.weight"]),
    ):
        pass


def test_a_name_carries_the_content(written, model_folder, tmp_path):
    source = model_folder("llama", torch.bfloat16)
    before = stored_scheme(written, source, tmp_path).name
    shutil.copytree(written, tmp_path / "copy" / "w")
    assert stored_scheme(tmp_path / "copy" / "w", source, tmp_path).name == before
    tensors = load_file(written / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, written / "model.safetensors", {"format": "pt"})
    assert stored_scheme(written, source, tmp_path).name != before
