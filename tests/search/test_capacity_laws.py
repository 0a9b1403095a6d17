"""The edge of the limits: both ends of the bracket were tried, and the figures there follow from what was offered."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.search.capacity import CEILING, FLOOR, TOLERANCE, capacity_of, find_edge
from fwopt.search.log import TrialLog
from fwopt.search.steps import fewest, lockstep
from fwopt.spec.candidate import Candidate, Parallelism


def _edge(service, candidate, **options):
    asked = []

    def answer(batch):
        asked.extend(rate for _, rate in batch)
        return [service.evaluate(candidate, rate) for _, rate in batch]

    (edge,) = lockstep([find_edge(**options)], answer)
    return edge, asked


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0.1, 200), start=st.floats(0.05, 20))
def test_the_rate_returned_holds_and_one_just_above_does_not(toy, rate, start):
    service, candidate = toy.Toy(rate), Candidate(parallelism=Parallelism(replicas=4))
    edge, asked = _edge(service, candidate, start=start)
    if edge.rate_scale is None:
        assert not service.evaluate(candidate, FLOOR).feasible
        return
    assert service.evaluate(candidate, edge.rate_scale).feasible
    assert edge.rate_scale in asked
    if edge.broke is None:
        assert edge.rate_scale >= CEILING
        return
    above = min(r for r in asked if not service.evaluate(candidate, r).feasible)
    assert edge.rate_scale < above <= edge.rate_scale * (1 + TOLERANCE)
    assert len(asked) < 25


def test_figures_at_the_edge_are_those_of_the_traffic_offered_there(toy):
    service, candidate = toy.Toy(1.0), Candidate(parallelism=Parallelism(replicas=4))
    edge, _ = _edge(service, candidate)
    capacity = capacity_of(edge, toy.WINDOW_S)
    per_s = toy.REQUESTS / toy.WINDOW_S * capacity.rate_scale
    assert capacity.requests_per_s == pytest.approx(per_s)
    assert capacity.output_tokens_per_s == pytest.approx(10 * per_s)
    dollars_per_s = 4 * 2.0 / 3600
    assert capacity.usd_per_1m_output_tokens == pytest.approx(dollars_per_s / (10 * per_s) * 1e6)
    assert capacity.limited_by == "ttft:p99<2s"


def test_a_backlog_is_no_rate_that_is_served(toy):
    """Limits looser than the trace is long hold at any rate: what counts is how fast the work gets done."""
    edge, _ = _edge(toy.Toy(0.001), Candidate())
    metrics = edge.held.metrics.model_copy(update={"duration_s": 2.5 * toy.WINDOW_S / CEILING})
    backlog = replace(edge, held=edge.held.model_copy(update={"metrics": metrics}))
    capacity = capacity_of(backlog, toy.WINDOW_S)
    assert capacity.requests_per_s == pytest.approx(metrics.finished / metrics.duration_s)
    assert capacity.output_tokens_per_s == pytest.approx(metrics.output_tokens / metrics.duration_s)
    dollars = 2.0 / 3600 * metrics.duration_s
    assert capacity.usd_per_1m_output_tokens == pytest.approx(dollars / metrics.output_tokens * 1e6)


def test_what_never_breaks_is_reported_at_the_ceiling_with_nothing_limiting(toy):
    edge, _ = _edge(toy.Toy(0.001), Candidate())
    assert edge.rate_scale == CEILING
    assert capacity_of(edge, toy.WINDOW_S).limited_by is None


def test_more_replicas_carry_more(toy):
    edges = [_edge(toy.Toy(5.0), Candidate(parallelism=Parallelism(replicas=r)))[0].rate_scale for r in (1, 2, 4, 8)]
    assert edges == sorted(edges)


def test_a_burst_has_no_rate_and_so_no_capacity(toy):
    edge, _ = _edge(toy.Toy(1.0), Candidate())
    assert capacity_of(edge, 0.0) is None


@given(counts=st.lists(st.integers(1, 64), min_size=1, unique=True).map(sorted), least=st.integers(1, 80))
def test_bisection_finds_the_fewest_that_suffice(counts, least):
    asked = []

    def answer(batch):
        asked.extend(q for _, q in batch)
        return [q >= least for _, q in batch]

    assert lockstep([fewest(counts)], answer) == [next((c for c in counts if c >= least), None)]
    assert len(asked) == len(set(asked)) <= len(counts).bit_length() + 1


def test_the_plan_states_the_capacity_of_chosen_and_baseline(toy):
    plan = toy.tune(toy.inputs(toy.SMALL), toy.Toy(5.0), TrialLog())
    for entry in (plan.chosen, plan.baseline):
        capacity = toy.speed(entry.candidate) * entry.candidate.parallelism.replicas
        edge = capacity * (1 - 0.2 / 2) / 5.0  # 0.2/(1-load) reaches 2 s at load 0.9
        assert edge / (1 + TOLERANCE) <= entry.capacity.rate_scale <= edge


def test_no_rate_above_the_ceiling_is_tried(toy):
    """Challengers of a finalist at the ceiling start there too, so that plan and `fwopt capacity` say the same."""
    service = toy.Toy(0.001)
    plan = toy.tune(toy.inputs(toy.SMALL), service, TrialLog())
    assert max(rate for _, rate in service.calls) == CEILING
    assert plan.chosen.capacity.rate_scale == CEILING
