"""Steps that times of a mixture are weighed over: a run's own, or given by hand."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fwopt.cli import tuning
from fwopt.cli.mixing import _steps, mixed_order
from fwopt.cli.quantizing import Asked
from fwopt.errors import FwoptError
from fwopt.quality.schemes import SCHEMES
from fwopt.quantize.bands import Band, Product
from fwopt.quantize.card import _mixture
from fwopt.quantize.produce import Order
from fwopt.quantize.steps import Steps, parse_steps, steps_of_run
from fwopt.quantize.times import from_measured
from fwopt.spec.quantized import Mixture

BAND = Band("0-0.mlp.down_proj", (0,), "mlp.down_proj", (Product(128, 256),))


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    """(run folder, model folder, tokens that the requests hold)."""
    home = tmp_path_factory.mktemp("steps")
    shutil.copytree(model_folder("llama", torch.bfloat16), home / "tiny")
    draw, now, lines, tokens = random.Random(3), 0.0, [], 0
    for _ in range(40):
        now += draw.expovariate(20)
        prompt = draw.randint(20, 200)
        lines.append(json.dumps({"arrival_s": now, "prompt_tokens": prompt, "output_tokens": 30}))
        tokens += prompt + 30 - 1  # the last token is sampled and never computed on
    (home / "trace.jsonl").write_text("\n".join(lines) + "\n")
    (home / "fwopt.yaml").write_text(
        f"hardware: h200:1\ntrials: 2\nmodel: {home / 'tiny'}\nsearch: {{quantizations: [bf16], kv_dtypes: [bf16]}}\n"
    )
    given = {"out": home / "run", "config": home / "fwopt.yaml"}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        job, folder, _ = tuning.start(home / "trace.jsonl", given)
        tuning.run(job, folder, workers=1, timeout_s=None)
    return home / "run", home / "tiny", tokens


def quiet(*_):
    return None


def asked(model, step=None) -> Asked:
    return Asked(
        model=str(model), out=model, scheme="mixed", text=(), workload=(), calibrate=(), calibrate_tokens=512,
        max_tokens=512, window=64, choices="int8", max_kl=1.0, times=None, step=step, band=1, gguf_from=None, seed=0,
        home=None,
    )  # fmt: skip


def test_a_runs_steps_compute_its_requests(run):
    folder, model, tokens = run
    steps = steps_of_run(folder, model)
    count = int(steps.says.split()[1].replace(",", ""))
    assert steps.shares.sum() == pytest.approx(1.0)
    computed = count * float(steps.tokens @ steps.shares)
    assert tokens <= computed < 1.5 * tokens  # padded to captured graphs
    assert "run simulated" in steps.says
    assert steps.says == steps_of_run(folder / "plan.json", model).says


def test_the_run_that_is_written_brings_its_steps_and_a_hand_overrules_it(run):
    folder, model, _ = run
    assert _steps(asked(folder), model, quiet).says == steps_of_run(folder, model).says
    assert _steps(asked(model, str(folder)), model, quiet).says == steps_of_run(folder, model).says
    assert _steps(asked(folder, "8:3,512:1"), model, quiet).says == "steps given by hand, 8:3,512:1"
    with pytest.raises(FwoptError, match="--step RUN"):
        _steps(asked(model), model, quiet)


def test_too_little_text_to_measure_on_is_refused_before_anything_is_timed(run, tmp_path):
    folder, model, _ = run
    (tmp_path / "short.txt").write_text("Far too short.")
    (tmp_path / "other.txt").write_text("the words of a text that was not measured on " * 500)
    told = []
    wanted = replace(
        asked(folder), text=(tmp_path / "short.txt",), calibrate=(tmp_path / "other.txt",), times=Path("nowhere.json")
    )
    with pytest.raises(FwoptError, match="at least 8 are needed: give more text"):
        mixed_order(Order("tiny", model, tmp_path / "out", tmp_path, ""), str(model), wanted, lambda *a: told.append(a))
    assert told == []


def test_a_run_of_another_model_or_without_its_trace_is_refused(run, model_folder, tmp_path):
    folder, model, _ = run
    with pytest.raises(FwoptError, match="give a run of the same model"):
        steps_of_run(folder, model_folder("qwen3", torch.bfloat16))
    shutil.copytree(folder, tmp_path / "run")
    inputs = json.loads((tmp_path / "run/inputs.json").read_text()) | {"trace": "gone.jsonl"}
    (tmp_path / "run/inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(FwoptError, match=r"trace gone\.jsonl is not here"):
        steps_of_run(tmp_path / "run", model)


def timed(path, sizes, schemes=("bf16", "int8")):
    seconds = {name: {str(m): [1e-5 + 1e-7 * m] for m in sizes} for name in schemes}
    answer = {"products": [[256, 128]], "seconds": seconds, "version": "0", "machine": "none"}
    path.write_text(json.dumps(answer))
    return path


def test_times_are_weighed_over_every_step_and_between_sizes_they_are_interpolated(tmp_path):
    generator = np.random.default_rng(0)
    tokens = np.unique(generator.integers(1, 4000, 300))
    shares = generator.dirichlet(np.ones(len(tokens)))
    steps = Steps(tokens, shares, "drawn")
    sizes = steps.sizes()
    assert (sizes[0], sizes[-1], len(sizes) <= 14) == (tokens[0], tokens[-1], True)
    found = from_measured(timed(tmp_path / "t.json", sizes), [BAND], [SCHEMES["int8"]], steps)
    assert found.seconds("int8", BAND.products[0]) == pytest.approx(float((1e-5 + 1e-7 * tokens) @ shares))
    assert (found.provenance, found.steps) == ("measured, interpolated", "drawn")
    exact = from_measured(timed(tmp_path / "t.json", [8, 64]), [BAND], [SCHEMES["int8"]], parse_steps("64,8:3"))
    assert exact.provenance == "measured"
    assert exact.seconds("bf16", BAND.products[0]) == pytest.approx(1e-5 + 1e-7 * (0.75 * 8 + 0.25 * 64))


@pytest.mark.parametrize(("sizes", "schemes"), [([8, 64], ("bf16", "int8")), ([1, 4000], ("bf16",))])
def test_beyond_what_was_timed_nothing_is_guessed(tmp_path, sizes, schemes):
    with pytest.raises(FwoptError, match="measure again with --times vllm"):
        from_measured(timed(tmp_path / "t.json", sizes, schemes), [BAND], [SCHEMES["int8"]], parse_steps("4,100"))


def test_the_card_says_over_which_steps():
    mixture = Mixture(
        budget=0.1, predicted_kl=0.1, measured_kl=0.1, rounds=1, seconds=1e-3, groups=(), times="a table",
        steps="the 12 steps of run simulated", uniform={},
    )  # fmt: skip
    assert "weighed over the 12 steps of run simulated" in "\n".join(_mixture(mixture))
