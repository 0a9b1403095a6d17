"""Measured beside promised, in every report, and the choice by measurement."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fwopt.report import html, markdown
from fwopt.report.terminal import render
from fwopt.report.verification import markdown as verification_markdown
from fwopt.report.verification import render as render_verification
from fwopt.spec.outcome import Rejected
from fwopt.spec.plan import LiveTrial
from fwopt.spec.verification import Check, Sending, Slice, Verification
from fwopt.verify.choosing import decide, finalists


def verification(plan, entry, factor=1.08, valid=True) -> Verification:
    evaluation = entry.evaluation
    checks = (
        Check(metric="ttft:p90", unit="s", promised_whole=0.5, promised=0.48, measured=0.48 * factor,
              error=factor - 1, causes={"step time": 0.05, "rest": 0.027}),
        Check(metric="throughput", unit="tokens/s", promised_whole=1000.0, promised=900.0, measured=880.0,
              error=880 / 900 - 1, causes={}),
    )  # fmt: skip
    return Verification(
        fwopt_version="0.1.0", made_at="2026-11-24T08:00:00Z", workload=plan.workload, workload_digest="9a0b6c1d",
        model=plan.model.name, hardware="h200", engine=plan.engine, server_version="0.24.0", candidate=entry.candidate,
        plan=None, cache="cold: prompts not seen before", valid=valid, problems=() if valid else ("the client lagged",),
        slice=Slice(start=100, stop=1100, requests=19_366, digest="aa", errors={"ttft:p90": 0.04}), checks=checks,
        measured=evaluation.metrics, promised=evaluation.metrics, step_factor=1.05,
        sending=Sending(requests=1000, lag_p50_s=0.0002, lag_p99_s=0.0021, lag_max_s=0.004),
        environment={"gpu": "NVIDIA H200", "driver": "570"},
    )  # fmt: skip


def trial(plan, entry, cost=None, feasible=True, valid=True) -> LiveTrial:
    goal = entry.evaluation.goals[0]
    changes = {"source": "measured", "feasible": feasible}
    if cost is not None:
        changes["goals"] = (goal.model_copy(update={"value": cost}),)
    found = entry.evaluation.model_copy(update=changes)
    return LiveTrial(candidate=entry.candidate, outcome=found, verification=verification(plan, entry, valid=valid),
                     folder=f"live/{entry.candidate.id}")  # fmt: skip


def test_finalists_are_the_best_then_the_baseline(sample):
    plan = sample.plan()
    picked = finalists(plan, 2)
    assert [e.candidate.id for e in picked] == [
        plan.chosen.candidate.id, plan.runners_up[0].candidate.id, plan.baseline.candidate.id
    ]  # fmt: skip
    assert len(finalists(plan, 50)) == 2 + len(plan.runners_up)


def test_measurement_overrules_the_simulation(sample):
    plan = sample.plan()
    live = [trial(plan, plan.chosen, 0.20), trial(plan, plan.runners_up[0], 0.15), trial(plan, plan.baseline, 0.3)]
    found = decide(plan, live)
    assert found.chosen.candidate.id == plan.runners_up[0].candidate.id
    assert found.chosen_by == "measurement"
    assert plan.chosen.candidate.id in {e.candidate.id for e in found.runners_up}
    assert any("the simulation had preferred" in note for note in found.notes)


def test_within_the_noise_the_simulations_order_stands(sample):
    plan = sample.plan()
    found = decide(plan, [trial(plan, plan.chosen, 0.200), trial(plan, plan.runners_up[0], 0.196)])
    assert found.chosen.candidate.id == plan.chosen.candidate.id


def test_a_candidate_that_broke_a_limit_or_failed_or_lagged_does_not_win(sample):
    plan = sample.plan()
    down = plan.runners_up[1].candidate
    failed = LiveTrial(candidate=down, outcome=Rejected(candidate_id=down.id, rung="live", reason="vllm crashed: x"),
                       verification=None, folder="live/x")  # fmt: skip
    live = [
        trial(plan, plan.chosen, 0.2),
        trial(plan, plan.runners_up[0], 0.1, feasible=False),
        failed,
        trial(plan, plan.runners_up[2], 0.05, valid=False),
    ]
    found = decide(plan, live)
    assert found.chosen.candidate.id == plan.chosen.candidate.id
    assert any("did not serve: vllm crashed: x" in note for note in found.notes)
    assert any("does not count" in note for note in found.notes)


def test_nothing_measured_leaves_the_choice_and_says_so(sample):
    plan = sample.plan()
    found = decide(plan, [trial(plan, plan.chosen, valid=False)])
    assert found.chosen == plan.chosen
    assert found.chosen_by == "simulation"
    assert any("nothing was measured that counts" in note for note in found.notes)


@pytest.mark.parametrize("how", ["terminal", "markdown", "html"])
def test_reports_show_measured_beside_promised(sample, how):
    plan = sample.plan()
    plan = decide(plan, [trial(plan, plan.chosen, 0.2), trial(plan, plan.baseline, 0.3)])
    if how == "terminal":
        console = Console(width=200, record=True, file=StringIO())
        render(plan, sample.trials(), console)
        text = console.export_text()
    else:
        text = {"markdown": markdown.render, "html": html.render}[how](plan, sample.trials())
    for said in ("518 ms", "+8.0%", "-2.2%", "1,000 of 19,366 requests replayed on a real server", "baseline"):
        assert said in text.replace("\\", ""), said


def test_a_verification_says_what_moved_and_whether_it_counts(sample):
    plan = sample.plan()
    found = verification(plan, plan.chosen)
    console = Console(width=160, record=True, file=StringIO())
    console.print(render_verification(found))
    for text in (console.export_text(), verification_markdown(found)):
        for said in ("step time", "+5%", "+3%", "+8.0%", "engine steps took 1.05 times", "cold", "2.10 ms after"):
            assert said in text, said
    broken = verification_markdown(verification(plan, plan.chosen, valid=False))
    assert "INVALID" in broken
    assert "the client lagged" in broken


def test_hostile_names_stay_text(hostile):
    plan = hostile.plan()
    plan = decide(plan, [trial(plan, plan.chosen, 0.2)])
    assert "<script>alert" not in html.render(plan, hostile.trials())
    assert "<script>" not in verification_markdown(verification(plan, plan.chosen))
