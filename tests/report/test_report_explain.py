"""Each kind of outcome says why."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from fwopt.errors import InputError, UnknownNameError
from fwopt.report.explain import find, render


@pytest.fixture
def explain(sample):
    def run(which, plan=None, trials=None, width=120) -> str:
        console = Console(width=width)
        with console.capture() as captured:
            render(plan or sample.plan(), sample.trials() if trials is None else trials, which, console)
        return re.sub(r"\s+", " ", captured.get())

    return run


def test_chosen(explain):
    text = explain("chosen")
    assert "It keeps every SLO and is the best found for: minimize cost" in text
    assert "Next best: fp8 kv-fp8 tp1 x2 seqs512 tok16384 at $0.113 c" in text
    assert "62% interpolated, 30% measured, 8% bound; profile h200_sxm/vllm-0.24.0" in text
    assert "GPUs 2 (baseline: 4)" in text


def test_baseline(explain):
    text = explain("baseline")
    assert "It is the baseline: vllm 0.24.0 defaults." in text
    assert "100% more than the chosen one's $0.135" in text


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "weights do not fit",
            "'memory' (does not fit in GPU memory): weights do not fit. Need 160 GiB, have 129 GiB.",
        ),
        ("slower than", "the rung 'bound'"),
        ("more GPUs", "the rung 'dominated' (cannot beat a candidate that was already evaluated)"),
    ],
)
def test_rejected(explain, sample, reason, said):
    trial = next(t for t in sample.trials() if t.outcome.kind == "rejected" and t.outcome.reason.startswith(reason))
    text = explain(f"#{trial.number}")
    assert said in text
    assert "It was not simulated, so it has no latencies." in text
    assert "Against the chosen:" in text


def test_missed(explain, sample):
    trial = next(t for t in sample.trials() if t.outcome.kind == "evaluation" and not t.outcome.feasible)
    assert "It misses a limit: TPOT p95 " in explain(str(trial.number))


def test_met_but_behind(explain, sample):
    candidate = sample.candidate("fp8", 3, kv="fp8", seqs=256, tokens=4096)
    text = explain(candidate.id[:6])
    assert "It keeps every SLO; minimize cost: $0.203, 50% more than the chosen one's $0.135" in text
    assert "SLO capacity: 1.10x this traffic, the chosen one's 1.31x" in text


def test_unmeasured(explain, sample):
    text = explain(sample.plan().unmeasured[0].candidate.id)
    assert "It is as good as the chosen one or better, but 41% of its GPU time rests on assumed" in text


def test_nearest_miss(explain, sample):
    plan, trials = sample.infeasible()
    text = explain("nearest", plan, trials)
    assert (
        "Nothing meets the objective; this comes closest: TTFT p99 219 ms, limit 100 ms, missed, 2.19x the limit."
        in text
    )
    assert "To give: relax to --slo 'ttft:p99<220ms'" in text


def test_unknown_names_are_one_clear_line(sample):
    plan, trials = sample.plan(), sample.trials()
    with pytest.raises(UnknownNameError, match="unknown candidate 'chosn'; nearest: chosen"):
        find(plan, trials, "chosn")
    with pytest.raises(InputError, match="there is no trial #9999; trials run from #0 to #78"):
        find(plan, trials, "#9999")
    with pytest.raises(InputError, match=r"the plan has no 'nearest' .*; this one has chosen and baseline"):
        find(plan, trials, "nearest")


def test_every_trial_can_be_explained(explain, sample):
    plan, trials = sample.plan(), sample.trials()
    for trial in trials:
        assert find(plan, trials, trial.candidate.id).candidate.id == trial.candidate.id
        assert explain(f"#{trial.number}", plan, trials)
