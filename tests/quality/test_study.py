"""`fwopt quality` from files to figures: the gate, resuming, what is kept, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from fwopt.cli.comparing_quality import request
from fwopt.errors import FwoptError
from fwopt.quality import study
from fwopt.quality.arms import Arm
from fwopt.quality.schemes import SCHEMES


def quiet(*_):
    pass


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    words = np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta\n", "rest", "of", "it"], 1200)
    path.write_text(" ".join(words))
    return path


def ask(folder, files, home, schemes="int8,w4a16-g32", **options):
    settings = {"max_tokens": 960, "window": 64, "seed": 0, "dtype": "bf16"} | options
    return request(str(folder), files, [], schemes, home, **settings)


@pytest.fixture(scope="session")
def measured(model_folder, prose, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    asked = ask(model_folder("llama", torch.bfloat16), [prose], home, None)
    return asked, *study.run(asked, quiet)


def test_every_scheme_gets_figures_in_the_order_of_its_bits(measured):
    _, results, _ = measured
    kl = {arm.name: arm.overall.kl.value for arm in results.arms}
    assert set(kl) == {*study.CONTROLS, *SCHEMES} - {"bf16"}
    assert kl["control-batch"] <= kl["control-kernel"] < kl["w8a16"] < kl["w4a16-g32"] < kl["w4a16-g64"] < kl["w4a16"]
    assert kl["w8a16"] < kl["int8"] < kl["mxfp4"]
    assert all(arm.overall.kl.low <= arm.overall.kl.value <= arm.overall.kl.high for arm in results.arms)


def test_classes_and_positions_share_out_all_tokens(measured):
    _, results, _ = measured
    for arm in results.arms:
        for parts in (arm.by_class, arm.by_position):
            assert sum(part.tokens for part in parts.values()) == arm.overall.tokens
            weighted = sum(part.tokens * part.kl.value for part in parts.values()) / arm.overall.tokens
            assert weighted == pytest.approx(arm.overall.kl.value)


def test_what_was_measured_is_read_not_measured_again(measured, monkeypatch):
    asked, results, path = measured
    monkeypatch.setattr(study, "_compute", lambda *_: pytest.fail("computed again"))
    assert study.run(asked, quiet) == (results, path)


def test_the_same_seed_gives_the_same_digits_elsewhere(measured, model_folder, prose, tmp_path):
    _, results, _ = measured
    again, _ = study.run(ask(model_folder("llama", torch.bfloat16), [prose], tmp_path, "int8"), quiet)
    assert again.arm("int8") == results.arm("int8")
    assert again.reference_perplexity == results.reference_perplexity


def test_a_scheme_added_later_joins_the_others(model_folder, prose, tmp_path):
    folder = model_folder("llama", torch.bfloat16)
    first, path = study.run(ask(folder, [prose], tmp_path, "int8"), quiet)
    second, same = study.run(ask(folder, [prose], tmp_path, "w8a16"), quiet)
    assert path == same
    assert [arm.name for arm in second.arms] == [*study.CONTROLS, "int8", "w8a16"]
    assert second.arm("int8") == first.arm("int8")


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_where_it_was(measured, model_folder, prose, tmp_path):
    asked = ask(model_folder("llama", torch.bfloat16), [prose], tmp_path, "int8")
    heard = []

    def until(what, done, total):
        heard.append((what, done))
        if what.startswith("layer 2") and "int8" in what:
            raise Killed

    with pytest.raises(Killed):
        study.run(asked, until)
    heard.clear()
    results, path = study.run(asked, lambda what, done, total: heard.append((what, done)))
    layers = [(what, done) for what, done in heard if what.startswith("layer")]
    assert layers[0] == ("layer 2 of 3: int8", 7)
    assert results.arm("int8") == measured[1].arm("int8")
    assert sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".")) == [
        "control-batch.npz", "control-kernel.npz", "int8.npz", "results.json",
    ]  # fmt: skip


def _verdict(monkeypatch, folder, prose, home, arm, seed=0):
    """Of an arm in the place of the scheme w8a16."""
    monkeypatch.setattr(study, "_scheme_arm", lambda scheme: arm)
    results, _ = study.run(ask(folder, [prose], home, "w8a16", seed=seed), quiet)
    return results.arm("w8a16")


def _scaled(layer, matrix, factor):
    return lambda index, name, value: value * factor if (index, name) == (layer, matrix) else value


@pytest.mark.parametrize("matrix", ["mlp.down_proj", "self_attn.v_proj"])
def test_one_layers_wrong_scales_are_caught(matrix, monkeypatch, model_folder, prose, tmp_path):
    arm = Arm("w8a16", damage=_scaled(1, matrix, 1.1))
    found = _verdict(monkeypatch, model_folder("llama", torch.bfloat16), prose, tmp_path, arm)
    assert found.verdict == "different"
    assert found.excess_kl.low > 0


@pytest.mark.parametrize("seed", range(3))
def test_another_order_of_batches_is_not_flagged(seed, monkeypatch, model_folder, prose, tmp_path):
    arm = Arm("w8a16", batch_tokens=64 * (3 + seed), backwards=seed % 2 == 0, padding=seed)
    found = _verdict(monkeypatch, model_folder("llama", torch.bfloat16), prose, tmp_path, arm, seed)
    assert found.verdict == "indistinguishable"


def test_numbers_that_are_not_finite_name_the_layer(model_folder, prose, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(model_folder("llama", torch.bfloat16), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FwoptError, match="unquantized model computes numbers that are not finite from layer 2 on"):
        study.run(ask(folder, [prose], tmp_path / "home"), quiet)


def test_a_scheme_that_overflows_is_left_out_with_its_layer(monkeypatch, model_folder, prose, tmp_path):
    arm = Arm("w8a16", damage=lambda index, name, value: value * float("inf") if index == 2 else value)
    monkeypatch.setattr(study, "_scheme_arm", lambda scheme: arm)
    results, _ = study.run(ask(model_folder("llama", torch.bfloat16), [prose], tmp_path, "w8a16"), quiet)
    assert [(item.name, "from layer 3 on" in item.reason) for item in results.left_out] == [("w8a16", True)]


def test_a_tokenizer_of_another_model_is_refused(model_folder, prose, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(model_folder("llama", torch.bfloat16), folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    other = json.loads(text)
    other["model"]["vocab"] = {k: v + 300 if len(k) == 1 else v for k, v in other["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(FwoptError, match=r"the model knows 320 \(vocab_size\)"):
        study.run(ask(folder, [prose], tmp_path / "home"), quiet)


@pytest.mark.parametrize(
    ("content", "problem"), [("", "holds no text"), ("too short", "0 windows|1 windows"), (b"\xff\xfe\x00", "UTF-8")]
)
def test_text_that_will_not_do_is_refused(content, problem, model_folder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FwoptError, match=problem):
        study.run(ask(model_folder("llama", torch.bfloat16), [path], tmp_path / "home"), quiet)


def test_a_scheme_that_does_not_fit_is_refused_or_left_out(model_folder, prose, tmp_path):
    """Groups of 128 in a model 192 wide."""
    import transformers

    from .conftest import SIZES, save_tokenizer

    torch.manual_seed(0)
    sizes = SIZES | {"hidden_size": 192, "intermediate_size": 192}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(torch.bfloat16)
    folder = tmp_path / "m"
    model.save_pretrained(folder)
    save_tokenizer(folder)
    with pytest.raises(FwoptError, match=r"scheme w4a16: .* is 192 wide, no multiple of 128"):
        study.run(ask(folder, [prose], tmp_path / "home", "int8,w4a16"), quiet)
    results, _ = study.run(ask(folder, [prose], tmp_path / "home", None), quiet)
    assert {item.name for item in results.left_out} == {"fp8-block", "w4a16"}


def test_recorded_requests_are_text(model_folder, tmp_path):
    lines = [{"schema_version": 1}]
    for i in range(12):
        text = {"prompt": f"request {i} " * 4, "reply": "an answer of some words " * 2}
        lines.append({"arrival_s": float(i), "prompt_tokens": 40, "output_tokens": 40, "text": text})
    trace = tmp_path / "recorded.jsonl"
    trace.write_text("\n".join(json.dumps(line) for line in lines))
    folder = str(model_folder("llama", torch.bfloat16))
    asked = request(folder, [], [trace], "int8", tmp_path / "h", max_tokens=960, window=96, seed=0, dtype="bf16")
    results, _ = study.run(asked, quiet)
    assert results.arms[0].overall.windows >= 8
    assert list(results.arms[0].by_class) == ["recorded.jsonl"]


def test_a_trace_without_text_says_how_to_record_it(model_folder, tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"arrival_s": 0.0, "prompt_tokens": 4, "output_tokens": 4}\n')
    folder = str(model_folder("llama", torch.bfloat16))
    asked = request(folder, [], [trace], "int8", tmp_path / "h", max_tokens=960, window=64, seed=0, dtype="bf16")
    with pytest.raises(FwoptError, match="--with-text"):
        study.run(asked, quiet)


@pytest.mark.parametrize("line", ["TIMESTAMP,ContextTokens,GeneratedTokens", '["a list"]', '{"arrival_s": 0.0, "te'])
def test_a_trace_that_is_no_json_is_refused_with_its_line(model_folder, tmp_path, line):
    trace = tmp_path / "t.jsonl"
    trace.write_text(f'{{"arrival_s": 0.0, "text": {{"prompt": "a"}}}}\n{line}\n')
    folder = str(model_folder("llama", torch.bfloat16))
    asked = request(folder, [], [trace], "int8", tmp_path / "h", max_tokens=960, window=64, seed=0, dtype="bf16")
    with pytest.raises(FwoptError, match=r"t\.jsonl: line 2 must be one JSON object"):
        study.run(asked, quiet)


def test_a_model_given_by_its_config_is_called_by_its_folder(model_folder, prose, tmp_path):
    folder = model_folder("llama", torch.bfloat16)
    given = str(folder / "config.json")
    asked = request(given, [prose], [], "int8", tmp_path / "h", max_tokens=960, window=64, seed=0, dtype="bf16")
    assert asked.model == folder.name


def test_bad_input_is_one_line_and_status_2(model_folder, tmp_path):
    command = [sys.executable, "-m", "fwopt", "quality", str(model_folder("llama", torch.bfloat16))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--text FILE" in done.stderr


def test_a_full_disk_is_one_line(model_folder, prose, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(FwoptError, match="No space left on device"):
        study.run(ask(model_folder("llama", torch.bfloat16), [prose], tmp_path), quiet)
    assert not list(tmp_path.rglob("*.tmp"))


def chatty(folder, path):
    """Recorded chats, and a template beside the tokenizer."""
    messages = [{"role": "user", "content": "words of a question " * 6}]
    text = {"messages": messages, "reply": "an answer of some words " * 4}
    rows = [{"arrival_s": float(i), "prompt_tokens": 40, "output_tokens": 40, "text": text} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, [{"schema_version": 1}, *rows])))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "A: {% for m in messages %}{{ m.content }}{% endfor %}"),
        ("tokenizer_config.json", '{"bos_token": "<s>"}'),
        ("tokenizer.json", None),
        ("config.json", None),
    ],
)
def test_whatever_changes_the_tokens_of_chats_is_another_study(model_folder, tmp_path, name, content):
    folder = tmp_path / "m"
    shutil.copytree(model_folder("llama", torch.bfloat16), folder)
    chatty(folder, tmp_path / "t.jsonl")
    options = {"max_tokens": 960, "window": 64, "seed": 0, "dtype": "bf16"}
    asked = request(str(folder), [], [tmp_path / "t.jsonl"], "int8", tmp_path / "h", **options)
    before = study.place(asked, quiet)
    assert study.place(asked, quiet) == before
    file = folder / name
    file.write_text(file.read_text() + "\n" if content is None else content)
    assert study.place(asked, quiet) != before


def test_what_only_chats_are_rendered_by_leaves_plain_text_its_study(model_folder, prose, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(model_folder("llama", torch.bfloat16), folder)
    before = study.place(ask(folder, [prose], tmp_path / "h"), quiet)
    chatty(folder, tmp_path / "t.jsonl")
    assert study.place(ask(folder, [prose], tmp_path / "h"), quiet) == before


def test_figures_say_by_which_versions_they_were_computed(model_folder, prose, tmp_path, monkeypatch):
    from fwopt.report.quality import render

    folder = model_folder("llama", torch.bfloat16)
    first, _ = study.run(ask(folder, [prose], tmp_path, "int8"), quiet)
    assert first.arm("int8").computed_by is None
    now = study._versions() | {"torch": "9.9"}
    monkeypatch.setattr(study, "_versions", lambda: now)
    computed = []
    second, path = study.run(ask(folder, [prose], tmp_path, "w8a16"), lambda what, *_: computed.append(what))
    assert any("control-kernel" in what for what in computed)  # the noise is of the versions that it is held against
    assert second.arm("int8").computed_by == first.made_by
    assert [second.arm(name).computed_by for name in (*study.CONTROLS, "w8a16")] == [None] * 3
    shown = render(second, str(path))
    assert f"int8: computed with torch {first.versions['torch']}" in shown
    assert "torch 9.9" in shown
