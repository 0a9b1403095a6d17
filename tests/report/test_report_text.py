"""Terminal and Markdown: what they must say, in every variant, at every width."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from fwopt.report import markdown
from fwopt.report.settings import settings
from fwopt.report.terminal import render
from fwopt.report.verdict import verdict
from fwopt.spec.objective import Goal, Objective
from fwopt.spec.outcome import Distribution
from fwopt.spec.plan import RejectedCount, Slower
from fwopt.spec.provenance import Interval


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def terminal(plan, trials, width=140, files=()) -> str:
    console = Console(width=width, record=True, file=StringIO())
    render(plan, trials, console, files)
    return console.export_text()


@pytest.fixture(params=["terminal 80", "terminal 140", "markdown"])
def say(request):
    """plan, trials -> the report's text on one line."""
    if request.param == "markdown":
        return lambda plan, trials: flat(markdown.render(plan, trials).replace("\\", "").replace("&lt;", "<"))
    width = int(request.param.split()[1])
    return lambda plan, trials: flat(terminal(plan, trials, width))


def test_the_decision_comes_with_its_saving_and_its_evidence(sample, say):
    text = say(sample.plan(), sample.trials())
    for promised in (
        "Deploy fp8 kv-fp8 tp1 x2 seqs256 tok4096 on 2 x H200-SXM-141GB",
        "$0.103 per 1M output tokens at SLO capacity; baseline (vllm 0.24.0 defaults) $0.178: 42% less",
        "2 instead of 4 for this traffic: $6,570 a month less",
        "every SLO holds up to 1.31x this traffic",
        "simulated: 62% interpolated, 30% measured, 8% bound",
        "$4.50 per GPU-hour (median on-demand, 2026-02 to 2026-09-25",
        "minimize cost; subject to ttft:p99<2s, tpot:p95<50ms",
        "730 h a month",
        "27% below",
        "(assumed)",
        "weights do not fit",
        "--allow-unmeasured",
        "41% of its GPU time is assumed",
        "Quality figures are literature medians",
        "16x its recorded rate",
        "720 candidates considered, 72 evaluated: 61 keep every SLO, 11 miss one",
    ):
        assert promised in text, promised


def test_nothing_is_cut_off_at_80_columns(sample):
    text = terminal(sample.plan(), sample.trials(), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("requests/s)") == 2
    assert text.count("9.10") == 2


def test_an_infeasible_plan_names_the_nearest_miss_and_what_would_give(sample, say):
    text = say(*sample.infeasible())
    assert "No deployment on 8 x H200 meets the objective" in text
    assert "missed, 2.19x the limit" in text
    assert "relax to --slo 'ttft:p99<220ms'" in text
    assert "serve 0.38x of this traffic, where every SLO holds" in text
    assert "--hardware h200:16" in text
    assert "Deploy " not in text


def test_rejected_requests_explain_an_infinite_quantile(sample, say):
    plan, _ = sample.infeasible()
    near = plan.nearest_miss
    slow = near.evaluation.slos[0].model_copy(update={"value_s": None})
    metrics = near.evaluation.metrics.model_copy(
        update={
            "rejected": {"exceeds context length": 574},
            "requests": 12_031,
            "ttft": Distribution(mean_s=0.2, p50_s=0.2, p90_s=0.3, p95_s=0.3, p99_s=None, max_s=None),
        }
    )
    evaluation = near.evaluation.model_copy(update={"slos": (slow, *near.evaluation.slos[1:]), "metrics": metrics})
    text = say(plan.model_copy(update={"nearest_miss": near.model_copy(update={"evaluation": evaluation})}), [])
    assert "TTFT p99 inf (rejected)" in text
    assert "574 of 12,031 requests are refused: exceeds context length (574)" in text
    assert "every quantile above p95.23 is infinite" in text
    assert "add GPUs" not in text


def test_all_fell_before_simulation(sample, say):
    plan, _ = sample.infeasible()
    text = say(plan.model_copy(update={"nearest_miss": None, "evaluated": 0}), [])
    assert "No deployment on 8 x H200 meets the objective" in text
    assert "648 candidates fell before simulation" in text


def test_an_interrupted_search_says_so(sample, say):
    text = say(sample.plan(status="interrupted"), sample.trials())
    assert "the search was interrupted after 72 evaluations: best so far, not of the whole space" in text
    nothing = sample.plan(status="interrupted", chosen=None, baseline=None, runners_up=(), pareto=(), unmeasured=(),
                          rejected=(), evaluated=0)  # fmt: skip
    assert "No answer yet" in say(nothing, [])


def test_without_a_price_no_dollar_is_stated(sample, say):
    goals = (Goal.parse("minimize", "gpus"),)
    free = type(sample)(price=None, objective=sample.objective.model_copy(update={"goals": goals}))
    text = say(free.plan(), free.trials())
    assert "add --price DOLLARS_PER_GPU_HOUR" in text
    assert not re.search(r"\$\d", text)
    assert "2 instead of 4 for this traffic" in text


def test_no_saving_is_claimed_against_a_baseline_that_misses_its_limits(sample, say):
    plan = sample.plan()
    base = plan.baseline.candidate
    old = sample.entry(base, sample.evaluation(base, 2.6, 0.03), 0.8, "ttft:p99<2s")
    text = say(plan.model_copy(update={"baseline": old}), sample.trials())
    assert "the baseline, on 4, misses TTFT p99 2.60 s, limit 2.00 s, missed, 30% over" in text
    assert "a month less" not in text


def test_a_worse_plan_is_called_worse(sample, say):
    plan = sample.plan()
    plan = plan.model_copy(update={"chosen": plan.baseline, "baseline": plan.chosen})
    text = say(plan, sample.trials())
    assert "72% more" in text
    assert "4 instead of 2 for this traffic: $6,570 a month more" in text


def test_the_baseline_can_win(sample, say):
    plan = sample.plan()
    text = say(plan.model_copy(update={"chosen": plan.baseline, "unmeasured": ()}), sample.trials())
    assert "this is the baseline itself, nothing better was found" in text


def test_the_ceiling_of_the_capacity_search_is_a_bound_not_a_value(sample, say):
    plan = sample.plan()
    edge = plan.chosen.capacity.model_copy(update={"limited_by": None})
    text = say(plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"capacity": edge})}), sample.trials())
    assert "at most $0.103 per 1M output tokens at SLO capacity" in text
    assert "the highest rate tried" in text


def test_no_slos_and_no_capacity_fall_back_to_this_traffic(sample, say):
    loose = type(sample)(objective=Objective(slos=()))
    plan = loose.plan()
    bare = {name: getattr(plan, name).model_copy(update={"capacity": None}) for name in ("chosen", "baseline")}
    text = say(plan.model_copy(update=bare), loose.trials())
    assert "$0.135 per 1M output tokens at this traffic" in text


def test_several_goals_are_drawn_against_each_other(sample):
    goals = (Goal.parse("minimize", "cost"), Goal.parse("minimize", "ttft:p99"))
    two = type(sample)(objective=sample.objective.model_copy(update={"goals": goals}))
    plan = two.plan()
    text = flat(terminal(plan.model_copy(update={"pareto": (plan.chosen, *plan.runners_up[1:])}), two.trials()))
    assert re.search(r"TTFT p99(, log scale)? \(up\) against \$/1M output tokens at this traffic \(across\)", text)
    assert "it is one of 3 points on the Pareto front" in text
    assert "o Pareto front" in text


def test_the_plot_marks_chosen_baseline_and_limit(sample):
    lines = terminal(sample.plan(), sample.trials(), 100).splitlines()
    drawn = [line.partition("|")[2] for line in lines if "|" in line]
    assert sum(line.count("C") for line in drawn) == 1
    assert sum(line.count("B") for line in drawn) == 1
    assert any("limit 50.0 ms |" in line for line in lines)


def test_the_plot_of_an_infeasible_plan_marks_the_nearest_miss_and_the_limit(sample):
    text = terminal(*sample.infeasible(), 100)
    drawn = [line for line in text.splitlines() if "|" in line]
    assert sum(line.partition("|")[2].count("N") for line in drawn) == 1
    assert "N nearest miss" in text
    assert any("limit 100 ms |" in line for line in drawn)


def test_files_are_named_to_open(sample, tmp_path):
    assert str(tmp_path / "report.html") in flat(terminal(sample.plan(), [], 300, [tmp_path / "report.html"]))


def test_hostile_names_stay_text(hostile):
    plan, trials = hostile.plan(), hostile.trials()
    shown = terminal(plan, trials)
    assert "\x1b" not in shown
    assert "[red]" in shown
    text = markdown.render(plan, trials)
    prose = text.partition("```sh")[0] + text.rpartition("```")[2]
    assert "<script>" not in prose
    assert "<img" not in prose
    assert "\x1b" not in text


def test_markdown_tables_are_rectangular(sample, hostile):
    for plan, trials in ((sample.plan(), sample.trials()), (hostile.plan(), []), sample.infeasible()):
        width = None
        for line in markdown.render(plan, trials).splitlines():
            columns = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
            assert columns is None or width is None or columns == width, line
            width = columns


def test_capacity_probes_are_counted_but_compared_with_nothing(sample):
    trials = sample.trials()
    probe = trials[0].model_copy(update={"number": len(trials), "role": "capacity", "rate_scale": 1.5})
    text = flat(terminal(sample.plan(), [*trials, probe]))
    assert "1 run at other rates found the capacities" in text
    assert "72 evaluated" in text


def test_unknown_rungs_and_no_rejections_are_fine(sample):
    odd = RejectedCount(rung="later", reason="new reason", count=3, example="x")
    assert "new reason" in terminal(sample.plan(rejected=(odd,)), [])
    assert "The search" in terminal(sample.plan(rejected=()), [])


def test_every_setting_of_a_candidate_is_shown(sample):
    candidate = sample.candidate().model_copy(update={"kernels": "0" * 16})
    shown = settings(candidate)
    rest = candidate.model_dump(exclude={"quantization"}).values()
    assert len(shown) == len(["GPUs", "quantization"]) + sum(len(v) if isinstance(v, dict) else 1 for v in rest)


def test_what_longer_steps_would_do_is_told_with_the_limits_it_would_break(sample):
    plan = sample.plan()

    def said(**more):
        evaluation = plan.chosen.evaluation
        results = []
        for r in evaluation.slos:
            value = r.value_s * more.get(r.slo.metric, 1)
            results.append(r.model_copy(update={"value_s": value, "met": value < r.slo.limit_s}))
        slower = Slower(factor=1.05, evaluation=evaluation.model_copy(update={"slos": tuple(results)}))
        chosen = plan.chosen.model_copy(update={"if_slower": slower})
        return dict(verdict(plan.model_copy(update={"chosen": chosen})).points)["drift"]

    told = "steps 5% longer would make TTFT p99 468 ms (10% more) and TPOT p95 38.1 ms (5% more)"
    assert said(ttft=1.1, tpot=1.05) == told
    assert said(ttft=6).endswith("; ttft:p99<2s would be missed")
    assert "drift" not in dict(verdict(plan).points)


def test_a_limit_kept_by_less_than_the_error_of_predictions_is_a_caution(sample):
    plan = sample.plan()
    tpot = next(r for r in plan.chosen.evaluation.slos if r.slo.metric == "tpot")
    ratio = tpot.value_s / tpot.slo.limit_s

    def cautions(high):
        interval = Interval(metric="tpot", group="dense", low=0.9, high=high, rows=100)
        said = verdict(sample.plan(intervals=(interval,)))
        return said.tone, [text for about, text in said.points if about == "but" and "measured times" in text]

    tone, said = cautions(1.05 / ratio)
    assert tone == "warn"
    assert "TPOT p95" in said[0]
    assert "--slo 'tpot:p95<" in said[0]
    assert cautions(0.99 / ratio)[1] == []
