"""`--max-quality-drop 'evals:SET>=-0.5pp'`: only what was measured to keep it is chosen."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from fwopt.errors import InputError
from fwopt.search.evals import EvalsScreen, find_evals
from fwopt.search.log import TrialLog
from fwopt.search.run_folder import read_plan
from fwopt.search.settings import ObjectiveSettings, parse_objective
from fwopt.spec.candidate import W4A16, Bf16, Candidate, Fp8, Int8
from fwopt.spec.evals import Difference, EvalComparison, EvalSettings, EvalsHeader, Paired, Served
from fwopt.spec.objective import EvalsLimit
from fwopt.targets import load_model


def write(home, scheme, low, *, digest, set_name="tools", started="2026-01-01T00:00:00", name=None):
    header = EvalsHeader(
        fwopt_version="0", started_at=started, set=set_name, digest="d", items=800, settings=EvalSettings(),
        served=Served(url="http://127.0.0.1:1", model="m"), scheme=scheme, config_digest=digest,
    )  # fmt: skip
    figures = Paired(
        items=800, reference=0.8, score=0.799, only_reference=3, only_this=2, p_value=1.0, verdict="undecided",
        difference=Difference(value=-0.00125, low=low, high=0.005), method="Tango", more_items=None,
    )  # fmt: skip
    found = EvalComparison(
        fwopt_version="0", set=set_name, margin=0.01, reference=header, this=header, reference_file="r", this_file="t",
        overall=figures, by_group={}, reference_errors=0, this_errors=0,
    )  # fmt: skip
    folder = home / set_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name or scheme}.against.json").write_text(found.model_dump_json())


@pytest.fixture
def home(toy, tmp_path):
    for scheme, low in {"fp8": -0.004, "int8": -0.02, "fp8+kv-fp8": -0.001}.items():
        write(tmp_path, scheme, low, digest=toy.MODEL.config_digest)
    write(tmp_path, "w4a16", 0.0, digest="of another model")
    return tmp_path


@pytest.fixture
def screen(toy, home):
    def make(*limits):
        return EvalsScreen(toy.MODEL, tuple(map(EvalsLimit.parse, limits)), find_evals(toy.MODEL, home))

    return make


def test_a_limit_is_held_against_the_low_end_of_the_interval(screen):
    assert screen("evals:tools>=-0.5pp").check(Candidate(quantization=Fp8())) is None
    fell = screen("evals:tools>=-0.3pp").check(Candidate(quantization=Fp8()))
    assert fell is not None
    assert (fell.need, fell.have) == (-0.003, -0.004)
    assert "measured, end of the 95 % interval" in fell.reason
    assert screen("evals:tools>=-0.5pp").check(Candidate(quantization=Int8())) is not None


def test_what_was_not_measured_does_not_pass_and_says_how_to_measure_it(screen):
    for candidate in (Candidate(quantization=W4A16()), Candidate(quantization=Int8(), kv_dtype="fp8")):
        fell = screen("evals:tools>=-5pp").check(candidate)
        assert fell is not None
        assert fell.rung == "quality"
        assert "was not measured on evals:tools; `fwopt evals tools.jsonl" in fell.reason
    fell = screen("evals:other>=-5pp").check(Candidate(quantization=Fp8()))
    assert fell is not None
    assert "not measured on evals:other" in fell.reason


def test_weights_and_cache_count_as_measured_together_only(screen):
    assert screen("evals:tools>=-0.5pp").check(Candidate(quantization=Fp8(), kv_dtype="fp8")) is None
    fell = screen("evals:tools>=-50pp").check(Candidate(quantization=Bf16(), kv_dtype="fp8"))
    assert fell is not None
    assert "kv-fp8 was not measured" in fell.reason


def test_the_published_weights_as_they_are_lose_nothing(screen):
    assert screen("evals:tools>=-0pp", "evals:other>=-0pp").check(Candidate(quantization=Bf16())) is None


def test_every_limit_is_kept(toy, home):
    write(home, "fp8", -0.2, digest=toy.MODEL.config_digest, set_name="sums")
    limits = tuple(map(EvalsLimit.parse, ("evals:tools>=-0.5pp", "evals:sums>=-1pp")))
    fell = EvalsScreen(toy.MODEL, limits, find_evals(toy.MODEL, home)).check(Candidate(quantization=Fp8()))
    assert fell is not None
    assert "evals:sums" in fell.reason


def test_the_newest_comparison_counts(toy, home):
    write(home, "fp8", -0.3, digest=toy.MODEL.config_digest, started="2026-02-01T00:00:00", name="a-later")
    assert find_evals(toy.MODEL, home).sets["tools"]["fp8"].low == -0.3


def test_a_broken_file_is_named(toy, home):
    (home / "tools" / "x.against.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.against\.json: is no comparison of `fwopt evals`"):
        find_evals(toy.MODEL, home)


@pytest.mark.parametrize("text", ["evals:tools>=-0.5pp", "evals:my-set.v2>=-0pp", "evals:tools>=-12.25pp"])
def test_limits_read_back_as_written(text):
    assert str(EvalsLimit.parse(text)) == text


NO_LIMITS = "evals:a>=0.5pp, evals:a>=-0.5%, evals:>=-1pp, evals:a<-1pp, evals:a>=-.pp, evals:a>=-200pp".split(", ")


@pytest.mark.parametrize("text", NO_LIMITS)
def test_what_is_no_limit_says_how_one_is_written(text):
    with pytest.raises(InputError, match=r"write 'evals:SET>=-0\.5pp', a drop in percentage points"):
        EvalsLimit.parse(text)


def test_limits_of_both_kinds_stand_beside_each_other(toy):
    settings = ObjectiveSettings(max_quality_drop=("evals:tools>=-0.5pp", "kl<0.01", "evals:sums>=-1pp"))
    objective, _ = parse_objective(settings, toy.HARDWARE)
    assert [str(limit) for limit in objective.quality_limits] == ["kl<0.01", "evals:tools>=-0.5pp", "evals:sums>=-1pp"]
    with pytest.raises(InputError, match="limits a figure twice"):
        parse_objective(ObjectiveSettings(max_quality_drop=("evals:a>=-1pp", "evals:a>=-2pp")), toy.HARDWARE)


def test_a_given_baseline_that_was_not_measured_is_shown_and_not_chosen(toy, home):
    """It passes by the screens, so that there is a number to compare with."""
    mine = Candidate(quantization=Fp8(), kv_dtype="bf16", parallelism={"replicas": 4})
    objective = toy.inputs(toy.SMALL).objective.model_copy(
        update={"max_evals_drop": (EvalsLimit.parse("evals:tools>=-0.1pp"),)}
    )
    inputs = toy.inputs(toy.SMALL, objective=objective, baseline=mine, evals=find_evals(toy.MODEL, home))
    plan = toy.tune(inputs, toy.Toy(12.0), TrialLog(), baseline=mine)
    assert plan.baseline.candidate == mine
    assert plan.chosen.candidate.quantization.kind == "bf16"


@pytest.mark.slow
def test_tune_chooses_only_what_was_measured_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    model = load_model("Qwen/Qwen3-8B")
    write(tmp_path / "fwopt" / "evals", "fp8-block", -0.002, digest=model.config_digest)
    draw, now, lines = random.Random(3), 0.0, []
    for _ in range(200):
        now += draw.expovariate(20)
        lines.append({"arrival_s": now, "prompt_tokens": draw.randint(50, 2000), "output_tokens": draw.randint(1, 200)})
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "fwopt", "tune", "trace.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h200:2",
               "--trials", "12", "--out", "run", "--max-quality-drop", "evals:tools>=-0.5pp"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plan = read_plan(tmp_path / "run")
    for entry in (plan.chosen, *plan.runners_up):
        quantization = entry.candidate.quantization
        assert entry.candidate.kv_dtype == "bf16"
        assert quantization.kind == "bf16" or (quantization.kind == "fp8" and quantization.scale == "block")
    assert any(note.startswith("evals:tools>=-0.5pp is measured of fp8-block") for note in plan.notes)
    assert any("was not measured on evals:tools" in entry.reason for entry in plan.rejected)
    assert "--max-quality-drop 'evals:tools>=-0.5pp'" in plan.command
