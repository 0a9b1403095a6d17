"""What `fwopt quantize` writes: equal to what was measured, whole or not there, described."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwopt.cli.quantizing import _vocabulary, scheme_of
from fwopt.errors import FwoptError
from fwopt.quality.schemes import SCHEMES, Scheme
from fwopt.quality.stored import StoredConfig, StoredShards
from fwopt.quantize.produce import read_record
from fwopt.quantize.readback import check
from fwopt.quantize.write import Writer, appearing
from fwopt.spec.candidate import W4A16, Bf16, Fp8, Gguf, Int8, Mxfp4


def quiet(*_):
    return None


def write(folder: Path, target: Path, scheme: Scheme) -> Path:
    with appearing(target) as work:
        Writer(folder, scheme, quiet).write(work)
    return target


def fwopt(*words: str, **kwargs) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fwopt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


@pytest.mark.parametrize("scheme", ["fp8", "fp8-row", "int8", "w8a16", "w4a16-g64", "w4a16-g32", "mxfp4"])
@pytest.mark.parametrize("name", ["llama-tied-biased", "qwen3-moe", "phi3"])
def test_every_matrix_reads_back_as_it_was_measured(name, scheme, model_folder, tmp_path):
    source = model_folder(name, torch.bfloat16)
    written = write(source, tmp_path / "w", SCHEMES[scheme])
    layers = 3
    assert check(source, SCHEMES[scheme], written, quiet) >= 4 * layers
    assert (
        StoredShards(written, StoredConfig.read(written)).quantized.keys().isdisjoint({"lm_head", "model.embed_tokens"})
    )


def test_fp8_blocks_read_back_where_they_fit(model_folder, tmp_path):
    source = model_folder("llama", torch.bfloat16)
    assert check(source, SCHEMES["fp8-block"], write(source, tmp_path / "w", SCHEMES["fp8-block"]), quiet) == 21


def test_matrices_that_engines_fuse_share_one_scale(model_folder, tmp_path):
    written = load_file(
        write(model_folder("llama", torch.bfloat16), tmp_path / "w", SCHEMES["fp8"]) / "model.safetensors"
    )
    q, k, v, up, gate, down = (
        written[f"model.layers.0.{m}_proj.weight_scale"].item()
        for m in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.up", "mlp.gate", "mlp.down")
    )
    assert q == k == v
    assert up == gate != down


def test_a_scale_that_was_changed_on_disk_is_found(model_folder, tmp_path):
    source = model_folder("llama", torch.bfloat16)
    written = write(source, tmp_path / "w", SCHEMES["int8"])
    tensors = load_file(written / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight_scale"][7] *= 1.01
    save_file(tensors, written / "model.safetensors", {"format": "pt"})
    with pytest.raises(FwoptError, match=r"layer 1, mlp\.down_proj reads back otherwise"):
        check(source, SCHEMES["int8"], written, quiet)


def test_a_sharded_checkpoint_keeps_its_shards(model_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(model_folder("llama", torch.bfloat16), source)
    tensors = load_file(source / "model.safetensors")
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, source / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    written = write(source, tmp_path / "w", SCHEMES["fp8"])  # siblings that share a scale lie in different files
    assert check(source, SCHEMES["fp8"], written, quiet) == 21
    whole = write(model_folder("llama", torch.bfloat16), tmp_path / "whole", SCHEMES["fp8"])
    one = load_file(whole / "model.safetensors")
    two = {k: v for file in written.glob("*.safetensors") for k, v in load_file(file).items()}
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name].float(), two[name].float()) for name in one)


@pytest.mark.parametrize("scheme", ["int8", "w4a16-g64", "fp8-row"])
def test_transformers_loads_what_was_measured(scheme, model_folder, tmp_path):
    import transformers

    source = model_folder("llama", torch.bfloat16)
    written = write(source, tmp_path / "w", SCHEMES[scheme])
    model = transformers.AutoModelForCausalLM.from_pretrained(written, dtype=torch.bfloat16)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()  # unpacks on the way
    shards = StoredShards(written, StoredConfig.read(written))
    with shards.slices([f"{module}.weight" for module in shards.quantized]) as ours:
        for name, value in ours.items():
            theirs = model.get_submodule(name.removesuffix(".weight")).weight
            torch.testing.assert_close(theirs.float(), value, rtol=2**-8, atol=0)


def test_stacked_experts_are_refused(model_folder, tmp_path):
    with pytest.raises(FwoptError, match="stacked experts cannot be written"):
        write(model_folder("gpt-oss", torch.bfloat16), tmp_path / "w", SCHEMES["int8"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def prose(tmp_path_factory):
    import pydoc_data.topics as topics

    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n\n".join(topics.topics[k] for k in sorted(topics.topics))[:6000], encoding="utf-8")
    return path


def test_the_card_carries_figures_noise_hashes_and_command(model_folder, prose, tmp_path):
    source, out = model_folder("llama", torch.bfloat16), tmp_path / "out"
    words = ("quantize", source, "--scheme", "int8", "--text", prose, "--out", out, "--quality-out", tmp_path / "q")
    ended = fwopt(*words, "--window", "64", "--max-tokens", "1024")
    assert ended.returncode == 0, ended.stderr
    record, card = read_record(out), (out / "README.md").read_text(encoding="utf-8")
    assert record.study is not None
    results = json.loads(next((tmp_path / "q").glob("*/results.json")).read_text())
    assert record.study.key == results["key"]
    kl = next(arm["overall"]["kl"] for arm in results["arms"] if arm["name"] == "int8")
    assert f"| int8 | {kl['value']:.3g} ({kl['low']:.3g} - {kl['high']:.3g})" in card
    assert "| control-kernel |" in card
    assert f"fwopt quantize {source}" in card
    for digest in (record.source_weights_digest, record.weights_digest, record.study.text_digest, record.study.key):
        assert f"`{digest}`" in card
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in record.files}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "q"]
    ended = fwopt("quality", source, "--text", prose, "--checkpoint", out, "--out", tmp_path / "q", "--window", "64",
                  "--max-tokens", "1024", "--json")  # fmt: skip
    arms = {arm["name"].partition("@")[0]: arm for arm in json.loads(ended.stdout)["arms"]}
    assert arms["out"]["overall"] == arms["int8"]["overall"]  # the checkpoint is the scheme, to the digit


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of a few MB needs root to mount")
def test_a_full_disk_leaves_nothing_under_the_name(model_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    source = model_folder("llama", torch.bfloat16)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        ended = fwopt("quantize", source, "--scheme", "int8", "--out", disk / "out", "--quality-out", tmp_path / "q")
        assert ended.returncode == 2
        assert ended.stderr.strip().splitlines()[-1].startswith(f"fwopt: {disk / 'out'}: cannot be written: ")
        assert "nothing was left there" in ended.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_may_grow_no_further_leaves_nothing_under_the_name(model_folder, tmp_path):
    ended = fwopt(
        "quantize", model_folder("llama", torch.bfloat16), "--scheme", "int8", "--out", tmp_path / "o" / "out",
        "--quality-out", tmp_path / "q", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2),
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "cannot be written" in ended.stderr.splitlines()[-1]
    assert list((tmp_path / "o").iterdir()) == []


def test_a_kill_leaves_nothing_under_the_name(model_folder, tmp_path):
    folder = tmp_path / "o"
    process = subprocess.Popen(
        [sys.executable, "-m", "fwopt", "quantize", str(model_folder("llama", torch.bfloat16)), "--scheme", "int8",
         "--out", str(folder / "out"), "--quality-out", str(tmp_path / "q")], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(folder.glob(".out-*/out/model.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "out").exists()


def test_bad_orders_end_in_one_line(model_folder, tmp_path):
    source = model_folder("llama", torch.bfloat16)
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("mine")
    plain = ("--out", tmp_path / "new")
    for words, problem in (
        ((source, "--scheme", "int8", "--out", there), "is there already"),
        ((source, "--scheme", "int9", *plain), "unknown scheme 'int9'; nearest: int8"),
        ((source, "--scheme", "kv-fp8", *plain), "leaves the weights as they are"),
        ((source, *plain), "--scheme is needed"),
        ((source, "--scheme", "gptq-w4a16-g64", *plain), "add --calibrate"),
        ((source, "--scheme", "gptq-fp8", *plain), "unknown calibrated scheme"),
        (("Qwen/Qwen3-8B", "--scheme", "int8", *plain), "only its shape is known here"),
    ):
        ended = fwopt("quantize", *words)
        assert ended.returncode == 2, words
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert problem in ended.stderr
    assert (there / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        (Int8(), "int8"),
        (Fp8(scale="block"), "fp8-block"),
        (W4A16(), "w4a16"),
        (W4A16(group_size=64), "w4a16-g64"),
        (Gguf(type="Q4_K_M"), "gguf-q4_k_m"),
    ],
)
def test_what_a_run_chose_is_what_is_written(chosen, name):
    assert scheme_of(chosen) == name


@pytest.mark.parametrize("chosen", [Bf16(), Mxfp4(), W4A16(scope="experts")])
def test_a_run_that_chose_what_is_published_writes_nothing(chosen):
    with pytest.raises(FwoptError, match="the run chose"):
        scheme_of(chosen)


@pytest.mark.parametrize(
    ("config", "says"),
    [("{}", "vocab_size: this field is missing"), ("[]", "vocab_size: this field is missing"), ("{", "not a readable")],
)
def test_a_config_without_a_vocabulary_is_one_line(config, says, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(FwoptError, match=rf"config\.json: {says}"):
        _vocabulary(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 7}}')
    assert _vocabulary(tmp_path) == 7
