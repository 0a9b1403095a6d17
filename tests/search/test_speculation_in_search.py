"""Speculation in the search: measured drafters compete with going without, on step times and memory of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fwopt.deploy import vllm_config
from fwopt.perf.costs import costs_of
from fwopt.perf.memory import kv_capacity
from fwopt.perf.store import load_profile
from fwopt.search.job import reopen
from fwopt.search.run_folder import read_inputs, read_plan
from fwopt.search.speculation import known_drafters, speculating
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.quality import Estimate
from fwopt.spec.speculation import (
    Acceptance,
    AcceptanceFigures,
    ModelDrafter,
    NgramDrafter,
    SpeculationResults,
    SpeculationSettings,
    StepsTaken,
)
from fwopt.targets import load_hardware, load_model
from fwopt.verify.promise import Promise

RUN = [sys.executable, "-m", "fwopt"]
MODEL, SMALL = "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"
GOOD, USELESS = NgramDrafter(tokens=3), NgramDrafter(tokens=5)
DRAFT = ModelDrafter(model=SMALL, tokens=3)


def acceptance(drafter: NgramDrafter | ModelDrafter, accepted: int) -> Acceptance:
    steps = StepsTaken(lengths=(10,) * 4, proposed=(drafter.tokens,) * 40, accepted=(accepted,) * 40)
    rate = Estimate(value=1.0 + accepted, low=None, high=None)
    figures = AcceptanceFigures(
        replies=4, steps=40, drafts=40, draft_tokens=40 * drafter.tokens, accepted_tokens=40 * accepted,
        acceptance_length=rate, by_position=(), tokens_per_step=rate, steps_by_tokens=(),
    )  # fmt: skip
    return Acceptance(drafter=drafter, weights_digest=None, overall=figures, by_class={}, steps=steps)


def results(*found: Acceptance) -> SpeculationResults:
    return SpeculationResults(
        fwopt_version="0", key="k", model=MODEL, config_digest=load_model(MODEL).config_digest, weights_digest=None,
        text=("replies.jsonl",), text_digest="t", replies_digest="r", settings=SpeculationSettings(replies="recorded"),
        drafters=found, versions={}, machine="m", date="2026-11-25",
    )  # fmt: skip


def put(path: Path, *found: Acceptance) -> Path:
    path.write_text(results(*found).model_dump_json())
    return path


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    draw = np.random.default_rng(0)
    lines = [
        json.dumps({"arrival_s": float(at), "prompt_tokens": int(p), "output_tokens": int(o), "model": MODEL})
        for at, p, o in zip(
            np.cumsum(draw.exponential(0.5, 100)), draw.integers(50, 900, 100), draw.integers(50, 200, 100), strict=True
        )
    ]
    path = tmp_path_factory.mktemp("trace") / "small.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def fwopt(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def tune(trace: Path, file: Path, cwd: Path, *more: object) -> subprocess.CompletedProcess[str]:
    asked = ("--hardware", "h200:1", "--minimize", "tpot:p50", "--trials", 40, "--speculation", file, "--out", "run")
    return fwopt("tune", trace, *asked, *more, cwd=cwd)


def test_a_drafter_that_is_often_right_is_chosen_and_exported(trace, tmp_path):
    done = tune(trace, put(tmp_path / "results.json", acceptance(GOOD, 3), acceptance(USELESS, 0)), tmp_path)
    assert done.returncode == 0, done.stderr
    plan = read_plan(tmp_path / "run")
    chosen = plan.chosen
    assert chosen.candidate.speculation == GOOD
    assert plan.baseline.candidate.speculation is None
    assert any(
        "ngram3:2-4 gives 4.00 tokens a step, ngram5:2-4 gives 1.00 tokens a step, measured on 4 recorded" in note
        for note in plan.notes
    )
    assert "--speculation SPECULATION.json" in plan.command
    exported = vllm_config.read(tmp_path / "run/deploy/vllm/config.yaml")
    assert exported.for_model(load_model(MODEL)).speculation == GOOD
    job = reopen(read_inputs(tmp_path / "run"), trace=None, profiles=None, folder=tmp_path / "run")
    promise = Promise.of(job.evaluator, chosen.candidate, ())
    found = promise.records(job.evaluator.workload)
    assert found.finish_s.max() == pytest.approx(
        job.evaluator.replay(chosen.candidate, promise.fit, 1.0).records.finish_s.max()
    )
    elsewhere = fwopt("export", "run", "--target", "sglang", cwd=tmp_path)
    assert (elsewhere.returncode, elsewhere.stderr.count("\n")) == (2, 1), elsewhere.stderr
    assert "written for vllm only" in elsewhere.stderr
    again = fwopt("tune", "--resume", "run", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["chosen"]["candidate"]["speculation"]["kind"] == "ngram"


def test_a_drafter_that_is_never_right_is_not_chosen_and_the_plan_says_so(trace, tmp_path):
    done = tune(trace, put(tmp_path / "results.json", acceptance(USELESS, 0)), tmp_path)
    assert done.returncode == 0, done.stderr
    plan = read_plan(tmp_path / "run")
    assert plan.chosen.candidate.speculation is None
    assert any(
        "ngram5:2-4 gives 1.00 tokens a step, measured on 4 recorded replies of replies.jsonl" in note
        for note in plan.notes
    )
    assert "speculative-config" not in (tmp_path / "run/deploy/vllm/config.yaml").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--engine", "llamacpp"), "under vLLM only"),
        (("--model", "Qwen/Qwen3-32B"), "run `fwopt speculation` with this model"),
    ],
)
def test_figures_of_another_engine_or_model_are_refused(more, words, trace, tmp_path):
    done = tune(trace, put(tmp_path / "results.json", acceptance(GOOD, 3)), tmp_path, *more)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr


def test_a_damaged_file_is_refused(trace, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    done = tune(trace, tmp_path / "results.json", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_configuration_in_use_speculates_by_what_was_measured_or_is_refused(trace, tmp_path):
    config = tmp_path / "today.yaml"
    said = json.dumps(GOOD.vllm())
    config.write_text(f"model: {MODEL}\nspeculative-config: '{said}'\n")
    refused = fwopt("simulate", trace, "--config", config, "--hardware", "h200:1", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "nobody measured how often ngram3:2-4 is right" in refused.stderr
    file = put(tmp_path / "results.json", acceptance(GOOD, 2))
    known = fwopt(
        "simulate", trace, "--config", config, "--hardware", "h200:1", "--speculation", file, "--json", cwd=tmp_path
    )
    assert known.returncode == 0, known.stderr
    done = tune(trace, file, tmp_path, "--baseline", config)
    assert done.returncode == 0, done.stderr
    assert read_plan(tmp_path / "run").baseline.candidate.speculation == GOOD


@pytest.fixture(scope="module")
def costs():
    engine, hardware = EngineSpec(), load_hardware("h200:1", None)
    profile, model = load_profile(hardware.device, engine, None), load_model(MODEL)
    return costs_of(model, hardware.device, engine, profile), lambda m: costs_of(m, hardware.device, engine, profile)


def test_a_draft_model_costs_time_memory_and_nothing_else_does(costs, tmp_path):
    plain, of = costs
    known = known_drafters(
        put(tmp_path / "r.json", acceptance(DRAFT, 2), acceptance(GOOD, 2)), plain.model, EngineSpec()
    )
    both = speculating(plain, known, of)
    bare, draft, ngram = (both.grid(Candidate(speculation=drafter)) for drafter in (None, DRAFT, GOOD))
    small = of(known.models[SMALL]).grid(Candidate())
    at = np.searchsorted(small.tokens, 64.0), np.searchsorted(bare.tokens, 64.0)
    assert draft.token_graph_s[at[1]] == pytest.approx(bare.token_graph_s[at[1]] + small.token_graph_s[at[0]])
    assert (draft.decode_s > bare.decode_s).all()
    assert draft.drafter_s is not None
    assert draft.drafter_s[0] > 2 * small.token_graph_s[0]
    for shares in (draft.token_share, draft.decode_share, draft.prefill_share, draft.sample_share):
        np.testing.assert_allclose(shares.sum(-1), 1.0)
    np.testing.assert_array_equal(ngram.token_graph_s, bare.token_graph_s)
    assert not ngram.async_scheduling
    assert ngram.serial_s == pytest.approx(bare.serial_s + bare.step_cpu_s)

    device = plain.device
    fits = [kv_capacity(plain.model, device, Candidate(), EngineSpec(), m) for m in (None, known.models[SMALL])]
    assert fits[1].weight_bytes_per_gpu - fits[0].weight_bytes_per_gpu > 1e9
    assert fits[1].bytes_per_token == fits[0].bytes_per_token + 2 * 8 * 128 * 28 * 2


def test_more_graphs_are_captured_where_a_sequence_brings_more_tokens(costs):
    plain, _ = costs
    batching = Candidate().batching.model_copy(update={"max_num_seqs": 16})
    sizes = [
        plain.grid(Candidate(batching=batching, speculation=drafter)).capture_sizes[-1] for drafter in (None, GOOD)
    ]
    assert sizes == [32, 128]
