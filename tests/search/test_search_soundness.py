"""What the search skips must not change the answer."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.search import ranking
from fwopt.search.dominance import Dominance
from fwopt.search.log import TrialLog
from fwopt.search.plan_builder import RUNNERS_UP
from fwopt.spec.base import SCHEMA_VERSION
from fwopt.spec.candidate import Candidate, Parallelism
from fwopt.spec.objective import Goal, Objective, Slo
from fwopt.spec.plan import Plan


def _brute_force(toy, service, space):
    """Best cost over every candidate, screens apart, and the ids that reach it."""
    found = {c.id: service.evaluate(c) for c in space.enumerate() if service.check(c) is None}
    kept = {i: e.goals[0].value for i, e in found.items() if e.feasible and not ranking.rests_on_assumptions(e)}
    best = min(kept.values(), default=None)
    return best, {i for i, value in kept.items() if best is not None and value <= best * 1.001}


def test_a_precision_without_a_layout_is_never_suggested(toy):
    space = toy.LARGE.model_copy(update={"impossible": (("fp8", "tp1"), ("fp8", "tp2"))})
    plan = toy.tune(toy.inputs(space, trials=60), toy.Toy(9.0), TrialLog())
    assert plan.chosen.candidate.quantization.kind == "bf16"


@pytest.mark.parametrize("rate", [1.5, 5.0, 9.0, 14.0, 20.0])
def test_enumeration_with_dominance_finds_what_brute_force_finds(toy, rate):
    service = toy.Toy(rate)
    best, ids = _brute_force(toy, toy.Toy(rate), toy.SMALL)
    log = TrialLog()
    plan = toy.tune(toy.inputs(toy.SMALL, trials=10_000), service, log)
    assert (plan.chosen is None) == (best is None)
    if plan.chosen is not None:
        assert plan.chosen.candidate.id in ids
    skipped = [t for t in log.trials if t.outcome.kind == "rejected" and t.outcome.rung == "dominated"]
    assert skipped
    assert not ids & {t.candidate.id for t in skipped}


def test_one_setting_alone_that_saves_a_gpu_is_found(toy):
    """However few suggestions there are: whole GPUs decide the cost."""

    class Peaked(toy.Toy):
        def latency_s(self, candidate, rate_scale):
            b = candidate.batching
            peak = 1.5 if (b.max_num_seqs, b.max_num_batched_tokens) == (32, 8192) else 1.0
            return super().latency_s(candidate, rate_scale / peak)

    best, _ = _brute_force(toy, Peaked(9.0), toy.LARGE)
    plan = toy.tune(toy.inputs(toy.LARGE, trials=20), Peaked(9.0), TrialLog())
    assert plan.chosen.evaluation.goals[0].value == pytest.approx(best)
    assert plan.chosen.candidate.batching.max_num_seqs == 32


@pytest.mark.parametrize("rate", [3.0, 9.0, 14.0])
def test_the_sampled_search_finds_the_fewest_gpus_in_a_large_space(toy, rate):
    best, _ = _brute_force(toy, toy.Toy(rate), toy.LARGE)
    plan = toy.tune(toy.inputs(toy.LARGE, trials=150), toy.Toy(rate), TrialLog())
    assert plan.chosen.evaluation.goals[0].value == pytest.approx(best)


def test_the_chosen_tie_goes_furthest_of_all_that_were_seen(toy):
    service, log = toy.Toy(9.0), TrialLog()
    plan = toy.tune(toy.inputs(toy.LARGE, trials=150), service, log)
    tied = ranking.tied([t for t in log.trials if t.rate_scale == 1.0 and plan_may_choose(t)])
    most = max(t.candidate.parallelism.replicas * toy.speed(t.candidate) for t in tied)
    mine = plan.chosen.candidate.parallelism.replicas * toy.speed(plan.chosen.candidate)
    assert mine >= most / 1.021


def plan_may_choose(trial):
    return (
        trial.outcome.kind == "evaluation"
        and trial.outcome.feasible
        and not ranking.rests_on_assumptions(trial.outcome)
    )


def test_assumed_times_are_shown_but_never_chosen_unless_allowed(toy):
    closed = toy.tune(toy.inputs(toy.LARGE), toy.Toy(14.0), TrialLog())
    assert closed.chosen.candidate.quantization.kind != "int8"
    assert {e.candidate.quantization.kind for e in closed.unmeasured} == {"int8"}
    opened = toy.tune(toy.inputs(toy.LARGE, allow_unmeasured=True), toy.Toy(14.0), TrialLog())
    assert opened.chosen.candidate.quantization.kind == "int8"
    assert opened.chosen.needs_checkpoint
    assert opened.unmeasured == ()


def test_the_baseline_is_first_and_has_the_fewest_replicas_that_suffice(toy):
    service, log = toy.Toy(5.0), TrialLog()
    plan = toy.tune(toy.inputs(toy.LARGE), service, log)
    assert log.trials[0].role == "baseline"
    count = plan.baseline.candidate.parallelism.replicas
    assert plan.baseline.evaluation.feasible
    fewer = Candidate(parallelism=Parallelism(replicas=count - 1))
    assert not service.evaluate(fewer).feasible


def test_a_given_baseline_is_evaluated_as_it_is(toy):
    mine = Candidate(parallelism=Parallelism(tp=2, replicas=3), router="round_robin")
    plan = toy.tune(toy.inputs(toy.LARGE, baseline=mine), toy.Toy(5.0), TrialLog(), baseline=mine)
    assert plan.baseline.candidate == mine
    assert plan.baseline_kind == "given"


def test_limits_that_nothing_meets_give_the_nearest_miss_and_what_would_have_to_give(toy):
    plan = toy.tune(toy.inputs(toy.SMALL), toy.Toy(60.0), TrialLog())
    assert plan.status == "infeasible"
    assert plan.chosen is None
    assert plan.nearest_miss.candidate.parallelism.gpus == 8
    assert not plan.nearest_miss.evaluation.feasible
    assert plan.nearest_miss.capacity.rate_scale < 1
    text = " ".join(plan.notes)
    assert "of the traffic" in text or "relax" in text
    assert sum(r.count for r in plan.rejected) == plan.evaluated + sum(
        r.count for r in plan.rejected if r.rung in ("memory", "dominated")
    )


def test_several_goals_give_a_front_that_nothing_dominates(toy):
    objective = Objective(
        slos=(Slo.parse("ttft:p99<2s"),), goals=(Goal.parse("minimize", "cost"), Goal.parse("minimize", "ttft:p99"))
    )
    log = TrialLog()
    plan = toy.tune(toy.inputs(toy.LARGE, objective=objective), toy.Toy(5.0, objective), log)
    values = [[g.value for g in e.evaluation.goals] for e in plan.pareto]
    assert len(values) > 2
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(values))
    assert plan.chosen.candidate.id in {e.candidate.id for e in plan.pareto}
    for trial in log.trials:
        if trial.rate_scale == 1.0 and plan_may_choose(trial):
            mine = [g.value for g in trial.outcome.goals]
            assert any(v[0] <= mine[0] and v[1] <= mine[1] for v in values)


def test_a_plan_survives_json(toy):
    plan = toy.tune(toy.inputs(toy.LARGE), toy.Toy(9.0), TrialLog())
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.schema_version == SCHEMA_VERSION
    assert len(plan.runners_up) <= RUNNERS_UP
    assert plan.chosen.candidate.id not in {e.candidate.id for e in plan.runners_up}


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.5, 40),
    order=st.permutations(range(1, 9)),
    limits=st.booleans(),
    goal=st.sampled_from(["cost", "gpus"]),
)
def test_dominance_only_skips_what_is_implied(toy, rate, order, limits, goal):
    slos = (Slo.parse("ttft:p99<2s"),) if limits else ()
    objective = Objective(slos=slos, goals=(Goal.parse("minimize", goal),))
    service, rule = toy.Toy(rate, objective), Dominance(objective)
    enough = [r for r in range(1, 9) if service.evaluate(_with(r)).feasible]
    for replicas in order:
        rejected = rule.check(_with(replicas))
        if rejected is None:
            rule.observe(_with(replicas), service.evaluate(_with(replicas)))
        else:
            assert limits
            assert replicas != min(enough, default=0)
            assert (replicas in enough) == ("fewer" in rejected.reason)


def _with(replicas):
    return Candidate(parallelism=Parallelism(replicas=replicas))
