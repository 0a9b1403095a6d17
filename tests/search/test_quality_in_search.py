"""Quality measured while the search goes on: lazily, once, and with the same choice as measuring everything first."""

from __future__ import annotations

import json
import random

import pytest

from fwopt.errors import RunFolderError
from fwopt.search.ladder import Stopped
from fwopt.search.ledger import Ledger
from fwopt.search.log import TrialLog, read_trials
from fwopt.search.plan_builder import PlanBuilder
from fwopt.search.quality import measured_name
from fwopt.search.run import search
from fwopt.search.stopping import Stopper
from fwopt.spec.candidate import W4A16, Bf16, Candidate, Fp8, Int8
from fwopt.spec.objective import Goal, Objective, QualityLimit, Slo
from fwopt.spec.outcome import Rejected, Trial
from fwopt.spec.quality import MeasuredQuality, SchemeCost

REJECTED = Rejected(candidate_id="c", rung="memory", reason="of no matter")
QUANTIZATIONS = (Bf16(), Fp8(), Fp8(scale="block"), Int8(), W4A16())


class Table:
    """A measurer that knows everything, and notes what it was asked."""

    def __init__(self, kl, failing=()):
        self.kl, self.failing, self.asked = kl, failing, []

    def measure(self, schemes):
        self.asked += schemes
        costs = {
            name: SchemeCost(kl=kl, kl_high=kl * 1.1, top1=1 - kl, top1_low=0.99 - kl)
            for name in schemes
            if name not in self.failing
            for kl in (self.kl(name),)
        }
        failed = {
            name: "computes numbers that are not finite from layer 2 on" for name in schemes if name in self.failing
        }
        return MeasuredQuality(file="study/results.json", key="k", text=("t.txt",), tokens=100, schemes=costs), failed


def at_random(seed):
    """Quality of any scheme, from its name alone."""
    return lambda name: random.Random(f"{seed} {name}").choice([0.001, 0.004, 0.02, 0.3])


class Service:
    """The toy service with speeds drawn for every precision and layout."""

    def __new__(cls, toy, seed, objective, rate=9.0):
        class Drawn(toy.Toy):
            def latency_s(self, candidate, rate_scale):
                c = candidate
                draw = random.Random(f"{seed} {c.quantization.content_hash()} {c.kv_dtype} {c.parallelism.tp}")
                seqs = 1 - 0.1 * abs(c.batching.max_num_seqs - 200) / 1000
                speed = draw.choice([1.5, 2.0, 3.0, 3.05, 4.5]) * c.parallelism.tp**0.8 * seqs
                load = self.rate * rate_scale / (c.parallelism.replicas * speed)
                return min(0.2 / (1 - load), 20.0) if load < 1 else 20 * load

            def evaluate(self, candidate, rate_scale=1.0):
                honest = candidate.model_copy(update={"quantization": Bf16()})
                found = super().evaluate(honest, rate_scale)  # Toy knows a provenance for three precisions
                value = self.latency_s(candidate, rate_scale)
                return _with_latency(toy, self, candidate, found, value)

        return Drawn(rate, objective)


def _with_latency(toy, service, candidate, found, value):
    from fwopt.search.scoring import EngineFacts, evaluate_metrics
    from fwopt.spec.outcome import Distribution

    every = Distribution(mean_s=value, p50_s=value, p90_s=value, p95_s=value, p99_s=value, max_s=value)
    metrics = found.metrics.model_copy(update=dict.fromkeys(("ttft", "tpot", "itl", "e2e", "queue"), every))
    facts = EngineFacts(found.provenance, 100, 10, 5.0, 0.5)
    return evaluate_metrics(
        candidate, metrics, lambda metric, which: value, facts,
        objective=service.objective, hardware=toy.HARDWARE, window_s=toy.WINDOW_S,
    )  # fmt: skip


OBJECTIVES = {
    "limit": (("minimize cost",), "kl<0.01"),
    "two limits": (("minimize gpus",), "kl<0.05 top1>90%"),
    "front": (("minimize cost", "minimize e2e:p95"), "kl<0.01"),
    "quality on the front": (("minimize cost", "minimize kl"), ""),
    "quality alone": (("maximize top1",), ""),
    "no limit": (("minimize cost",), ""),
}


def objective_of(name):
    goals, limits = OBJECTIVES[name]
    return Objective(
        slos=(Slo.parse("ttft:p99<2s"),),
        goals=tuple(Goal.parse(*goal.split()) for goal in goals),
        max_quality_drop=tuple(QualityLimit.parse(text) for text in limits.split()),
    )


def run(toy, objective, service, table, *, eager=False, space=None, log=None, path=None, stopper=None, baseline=None):
    space = space or toy.SMALL.model_copy(update={"quantizations": QUANTIZATIONS, "kv_dtypes": ("bf16", "fp8")})
    inputs = toy.inputs(space, objective=objective, trials=2000 if space.size < 2000 else 60, baseline=baseline)
    ledger = Ledger(toy.MODEL, objective, table, path)
    if eager:
        everything = {ledger.name(c): c for c in space.enumerate()}
        ledger.measure([_trial(c) for name, c in sorted(everything.items()) if name])
    found = search(
        inputs, service, (service,), baseline or Candidate(), log or TrialLog(), window_s=toy.WINDOW_S, ledger=ledger,
        stopper=stopper,
    )  # fmt: skip
    return PlanBuilder(inputs, "toy", "toy/profile", found, ledger=ledger).build()


def _trial(candidate):
    class Asked:
        pass

    asked = Asked()
    asked.candidate = candidate
    return asked


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_that_of_measuring_everything_first(toy, name, seed):
    objective, kl = objective_of(name), at_random(seed)
    failing = ("int8",) if seed % 3 == 0 else ()
    lazy, eager = Table(kl, failing), Table(kl, failing)
    plans = [run(toy, objective, Service(toy, seed, objective), table, eager=table is eager) for table in (lazy, eager)]
    chosen = [plan.chosen and plan.chosen.candidate.label for plan in plans]
    assert chosen[0] == chosen[1]
    assert [e.candidate.id for e in plans[0].pareto] == [e.candidate.id for e in plans[1].pareto]
    assert len(lazy.asked) == len(set(lazy.asked)) <= len(eager.asked)
    if plans[0].chosen is not None:
        assert plans[0].chosen.quality == plans[1].chosen.quality


def test_some_schemes_need_no_measuring_and_the_plan_says_which(toy):
    objective = objective_of("limit")
    spared = 0
    for seed in range(4):
        table = Table(at_random(seed))
        plan = run(toy, objective, Service(toy, seed, objective), table)
        assert {v.name for v in plan.schemes if v.status == "measured"} == set(table.asked)
        left = [v for v in plan.schemes if v.status == "not needed"]
        assert all(v.name in " ".join(plan.notes) and v.says for v in left)
        spared += len(left)
    assert spared > 4


def test_a_scheme_that_fails_takes_its_candidates_along_and_the_next_best_wins(toy, tmp_path):
    objective = objective_of("limit")
    kl = {"int8": 0.5, "fp8": 0.002}.get
    space = toy.SMALL.model_copy(update={"quantizations": (Bf16(), Fp8(), W4A16())})

    def speeds(candidate):
        return {"bf16": 2.0, "fp8": 3.3, "w4a16": 5.0}[candidate.quantization.kind]

    service = toy.Toy(12.0, objective)
    service.latency_s = lambda c, scale: 0.2 if 12.0 * scale < speeds(c) * c.parallelism.replicas else 30.0
    table = Table(lambda name: 0.4 if name == "w4a16" else kl(name))
    log = TrialLog(tmp_path / "trials.jsonl")
    plan = run(toy, objective, service, table, space=space, log=log)
    assert table.asked == ["w4a16", "fp8"]
    assert plan.chosen.candidate.quantization.kind == "fp8"
    assert plan.chosen.quality.known == "measured"
    assert "quality" in {r.rung for r in plan.rejected}
    lossy = [t.outcome.kind for t in log.trials if t.candidate.quantization.kind == "w4a16"]
    assert set(lossy) == {"rejected"}
    kept = read_trials(tmp_path / "trials.jsonl")[0]
    assert kept == log.trials
    assert [t.number for t in kept] == list(range(len(kept)))


def test_what_cannot_be_measured_is_rejected_with_the_reason(toy):
    objective = objective_of("no limit")
    service = Service(toy, 1, objective)
    table = Table(lambda name: 0.001, failing=("fp8", "fp8-block", "int8", "w4a16"))
    plan = run(toy, objective, service, table)
    failed = [v for v in plan.schemes if v.status == "failed"]
    assert failed
    assert all("not finite from layer 2" in v.says for v in failed)
    assert measured_name(plan.chosen.candidate, toy.MODEL) not in {v.name for v in failed}
    assert any(r.rung == "quality" and "not finite" in r.reason for r in plan.rejected)


class KilledError(Exception):
    """The process went away."""


@pytest.mark.parametrize("name", ["limit", "quality on the front"])
def test_a_run_killed_anywhere_ends_in_the_same_bytes_and_measures_nothing_twice(toy, tmp_path, name):
    objective = objective_of(name)
    whole = tmp_path / "whole"
    whole.mkdir()
    kl = at_random(5)

    def go(folder, table, service):
        log = TrialLog(folder / "trials.jsonl").load()
        try:
            return run(toy, objective, service, table, space=toy.LARGE, log=log, path=folder / "quality.json")
        finally:
            log.close()

    first = Table(kl)
    complete = toy.Toy(9.0, objective)
    plan = go(whole, first, complete)
    lines = (whole / "trials.jsonl").read_bytes()
    assert first.asked
    for share in (0.1, 0.5, 0.95):
        left = int(share * len(complete.calls))
        folder, calls, again = tmp_path / str(left), 0, Table(kl)
        folder.mkdir()
        service = toy.Toy(9.0, objective)
        evaluate = service.evaluate

        def stopping(*args, evaluate=evaluate, left=left):
            nonlocal calls
            calls += 1
            if calls > left:
                raise KilledError
            return evaluate(*args)

        service.evaluate = stopping
        with pytest.raises(KilledError):
            go(folder, again, service)
        resumed = go(folder, again, toy.Toy(9.0, objective))
        assert (folder / "trials.jsonl").read_bytes() == lines
        assert sorted(again.asked) == sorted(first.asked)
        assert resumed == plan


def test_stopped_while_measuring_the_plan_says_assumed(toy):
    class Stopping(Table):
        def measure(self, schemes):
            raise Stopped("timeout")

    objective = objective_of("limit")
    plan = run(toy, objective, Service(toy, 2, objective), Stopping(at_random(0)), stopper=Stopper(timeout_s=1000))
    assert any(v.status == "not measured" for v in plan.schemes)
    entries = [e for e in (plan.chosen, *plan.runners_up) if e is not None]
    lossy = [e for e in entries if e.candidate.quantization.kind != "bf16"]
    assert all(e.quality.known == "assumed" for e in lossy)
    assert any("not measured for" in note and "assumed" in note for note in plan.notes)


def test_a_given_baseline_that_loses_too_much_is_shown_and_not_chosen(toy):
    """It passes by the screens, so that there is a number to compare with."""
    mine = Candidate(quantization=Fp8(), parallelism={"replicas": 4})
    run_inputs = toy.inputs(toy.SMALL, objective=objective_of("limit").model_copy(
        update={"max_quality_drop": (QualityLimit.parse("kl<0.00001"),)}), baseline=mine)  # fmt: skip
    plan = toy.tune(run_inputs, toy.Toy(12.0), TrialLog(), baseline=mine)
    assert plan.baseline.candidate == mine
    assert plan.chosen.candidate.quantization.kind == "bf16"


def test_an_unlimited_space_still_ends_with_a_scheme_that_was_measured(toy):
    objective = objective_of("limit")
    table = Table(lambda name: 0.5 if "fp8" in name else 0.001)
    plan = run(toy, objective, toy.Toy(9.0, objective), table, space=toy.LARGE)
    assert plan.chosen.candidate.quantization.kind == "bf16"
    assert plan.chosen.candidate.kv_dtype == "bf16"
    assert "fp8" in table.asked


def test_quality_json_is_whole_and_readable(toy, tmp_path):
    objective = objective_of("limit")
    run(toy, objective, Service(toy, 3, objective), Table(at_random(3)), path=tmp_path / "quality.json")
    kept = json.loads((tmp_path / "quality.json").read_text())
    assert kept["schema_version"] == 1
    assert set(kept["asked_by"]) == set(kept["measured"]["schemes"]) | set(kept["failed"])


def test_schemes_of_changed_weights_are_not_mixed_with_those_before(tmp_path, toy):
    class Changed(Table):
        def measure(self, schemes):
            found, failed = super().measure(schemes)
            return found.model_copy(update={"key": str(len(self.asked))}), failed

    trials = [
        Trial(number=i, candidate=Candidate(quantization=q), role="search", outcome=REJECTED)
        for i, q in enumerate((Fp8(), Int8()))
    ]
    ledger = Ledger(toy.MODEL, Objective(), Changed(at_random(0)), tmp_path / "quality.json")
    ledger.measure(trials[:1])
    kept = (tmp_path / "quality.json").read_bytes()
    with pytest.raises(RunFolderError, match="start a new run"):
        ledger.measure(trials[1:])
    assert (tmp_path / "quality.json").read_bytes() == kept
