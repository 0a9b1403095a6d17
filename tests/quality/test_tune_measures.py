"""`fwopt tune --measure-quality`: from a trace, weights and a text to a plan that says what was measured."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch

from fwopt.cli import quality_on_demand, tuning
from fwopt.errors import InputError, RunFolderError
from fwopt.quality import study
from fwopt.search.run_folder import read_plan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(model_folder, tmp_path, monkeypatch):
    """A working directory with model, text, trace and settings; what is measured is kept beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    shutil.copytree(model_folder("llama", torch.bfloat16), "tiny")
    words = np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta\n", "rest", "of", "it"], 1200)
    (tmp_path / "prose.txt").write_text(" ".join(words))
    draw, now, lines = random.Random(3), 0.0, []
    for _ in range(40):
        now += draw.expovariate(20)
        lines.append(json.dumps({"arrival_s": now, "prompt_tokens": draw.randint(20, 200), "output_tokens": 30}))
    (tmp_path / "trace.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "fwopt.yaml").write_text(
        "hardware: h200:1\ntrials: 12\nmodel: ./tiny\n"
        "search: {quantizations: [bf16, fp8], kv_dtypes: [bf16], max_num_seqs: [64, 256]}\n"
        "measure_quality: {max_tokens: 640, window: 64}\n"
    )
    return tmp_path


def tune(place, out, **given):
    flags = {"measure_quality": [place / "prose.txt"], "out": place / out} | given
    job, folder, _ = tuning.start(place / "trace.jsonl", flags)
    plan, written = tuning.run(job, folder, workers=1, timeout_s=None)
    return plan, folder, written


def test_what_could_win_is_measured_once_and_the_file_is_named_everywhere(place, monkeypatch):
    plan, folder, written = tune(place, "run", max_quality_drop=["kl<0.5", "top1>1%"])
    measured = {v.name: v for v in plan.schemes if v.status == "measured"}
    assert "fp8" in measured
    file = next((place / "own/fwopt/quality").glob("*/results.json"))
    assert any(str(file) in note for note in plan.notes)
    assert json.loads((folder.path / "quality.json").read_text())["measured"]["file"] == str(file)
    for path in written:
        if path.suffix in (".md", ".html"):
            assert file.parent.name in path.read_text()
    lossy = [e for e in (plan.chosen, *plan.runners_up) if e.candidate.quantization.kind == "fp8"]
    assert all(e.quality.known == "measured" for e in lossy)
    before = (folder.path / "trials.jsonl").read_bytes()

    monkeypatch.setattr(study, "_compute", lambda *_: pytest.fail("computed again"))
    again, other, _ = tune(place, "again", max_quality_drop=["kl<0.5", "top1>1%"])
    assert again.chosen == plan.chosen
    assert (other.path / "trials.jsonl").read_bytes() == before
    resumed, folder, _ = tuning.resume(place / "run", None, {})
    assert tuning.run(resumed, folder, workers=1, timeout_s=None)[0] == plan

    (place / "prose.txt").write_text("another text")
    with pytest.raises(RunFolderError, match="text that quality is measured on changed"):
        tuning.run(resumed, folder, workers=1, timeout_s=None)


def test_a_scheme_over_its_limit_is_not_chosen(place):
    plan, folder, _ = tune(place, "run", max_quality_drop=["kl<0.00001"])
    assert plan.chosen.candidate.quantization.kind == "bf16"
    fell = [r for r in plan.rejected if r.rung == "quality"]
    assert fell
    assert all("measured" in r.reason for r in fell)
    assert read_plan(folder.path).schemes == plan.schemes


def test_a_family_that_cannot_be_streamed_rejects_its_schemes_with_the_reason(place, monkeypatch):
    monkeypatch.setattr("fwopt.quality.model.FAMILIES", ("mistral",))
    plan, _, _ = tune(place, "run")
    assert plan.chosen.candidate.quantization.kind == "bf16"
    failed = [v for v in plan.schemes if v.status == "failed"]
    assert failed
    assert all("unknown model family" in v.says for v in failed)
    assert any("unknown model family" in r.reason for r in plan.rejected if r.rung == "quality")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure_quality": ["missing.txt"]}, "missing.txt: cannot be read"),
        ({"model": "Qwen/Qwen3-8B"}, "needs the weights of Qwen/Qwen3-8B"),
        ({"engine": "llamacpp"}, "GGUF files of llama.cpp cannot be measured"),
    ],
)
def test_bad_input_is_refused_before_the_search(place, change, message):
    from pathlib import Path

    if "measure_quality" in change:
        change = {"measure_quality": [Path(name) for name in change["measure_quality"]]}
    with pytest.raises(InputError, match=message):
        tune(place, "run", **change)
    assert not (place / "run").exists()


def test_files_of_the_command_line_are_sorted_by_what_they_hold(tmp_path):
    found = quality_on_demand.by_kind([tmp_path / "a.txt", tmp_path / "r.jsonl.gz"])
    assert found == {"text": [str(tmp_path / "a.txt")], "workload": [str(tmp_path / "r.jsonl.gz")]}
