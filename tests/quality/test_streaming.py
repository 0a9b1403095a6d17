"""Layer by layer gives what the whole model gives."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import transformers

from fwopt.errors import FwoptError
from fwopt.quality.arms import Arm
from fwopt.quality.model import FAMILIES, StreamedModel
from fwopt.quality.states import States
from fwopt.quality.walk import Walk
from fwopt.quality.windows import Document, cut

from .conftest import MODELS, VOCABULARY


def streamed_logits(folder, windows, arm, work, dtype=torch.float32):
    model = StreamedModel(folder, dtype)
    states = States(work, len(windows.tokens), model.config.hidden_size, dtype)
    Walk(model, windows, states, model.stored_dtype()).run([arm], lambda *_: None)
    model.to_float32()
    with torch.inference_mode():
        return model.logits(states.read(arm.name, model.layers))


def whole_logits(folder, windows, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        rows = [
            model(input_ids=torch.from_numpy(windows.tokens[windows.rows(i)])[None]).logits[0]
            for i in range(len(windows))
        ]
    return torch.cat(rows).float()


@pytest.mark.parametrize("name", MODELS)
def test_streamed_logits_equal_those_of_the_whole_model(name, model_folder, make_windows, tmp_path):
    folder, windows = model_folder(name), make_windows()
    found = streamed_logits(folder, windows, Arm("reference"), tmp_path)
    torch.testing.assert_close(found, whole_logits(folder, windows), atol=2e-4, rtol=1e-4)


def test_every_family_that_is_streamed_is_compared_with_the_whole_model():
    types = {getattr(transformers, f"{prefix}Config").model_type for prefix, _ in MODELS.values()}
    assert types == set(FAMILIES)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt-oss"])
def test_the_kernel_control_differs_by_rounding_alone(name, model_folder, make_windows, tmp_path):
    folder, windows = model_folder(name), make_windows()
    arm = Arm("other", attention="eager", batch_tokens=96, backwards=True, wide=True, padding=5)
    found = streamed_logits(folder, windows, arm, tmp_path)
    torch.testing.assert_close(found, whole_logits(folder, windows), atol=2e-4, rtol=1e-4)


def test_windows_of_unlike_length_do_not_see_each_others_padding(model_folder, tmp_path):
    generator = np.random.default_rng(1)
    documents = [Document("a", generator.integers(3, VOCABULARY, n).tolist()) for n in range(20, 52, 4)]
    windows = cut(documents, prefix=(), window=64, max_tokens=1000, seed=0, vocabulary=VOCABULARY)
    folder = model_folder("llama")
    found = streamed_logits(folder, windows, Arm("reference"), tmp_path)
    torch.testing.assert_close(found, whole_logits(folder, windows), atol=2e-4, rtol=1e-4)


def test_one_layer_at_a_time_is_in_memory(model_folder):
    model = StreamedModel(model_folder("llama"), torch.float32)
    with model.layer(1):
        held = [not next(layer.parameters()).is_meta for layer in model.modules]
    assert held == [False, True, False]
    assert all(p.is_meta for layer in model.modules for p in layer.parameters())


def test_a_missing_shard_is_named(model_folder, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(model_folder("llama"), folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(FwoptError, match=f"{shards[1].name}.*missing shard"):
        StreamedModel(folder, torch.float32)


def test_an_unsupported_family_is_refused_by_name(tmp_path):
    config = transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(FwoptError, match=r"model family.*'mamba'"):
        StreamedModel(tmp_path, torch.float32)
