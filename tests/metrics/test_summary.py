"""Metrics by their definitions in docs/metrics.md, against hand-made records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwopt.metrics import Records, statistic, summarize
from fwopt.metrics.records import FINISHED, REJECTED_CONTEXT
from fwopt.metrics.summary import held_to
from fwopt.spec.objective import Slo


def make(first, finish, output, status=None, gaps=()) -> Records:
    n = len(first)
    edges = np.array([0.001, 0.01, 0.1, 1.0])
    return Records(
        arrival_s=np.zeros(n),
        scheduled_s=np.asarray(first) / 2,
        first_token_s=np.asarray(first, dtype=float),
        finish_s=np.asarray(finish, dtype=float),
        prompt_tokens=np.full(n, 10, dtype=np.int32),
        output_tokens=np.asarray(output, dtype=np.int32),
        cached_tokens=np.zeros(n, dtype=np.int32),
        status=np.asarray(status if status is not None else [FINISHED] * n, dtype=np.int8),
        replica=np.zeros(n, dtype=np.int16),
        preemptions=np.zeros(n, dtype=np.int32),
        itl_edges_s=edges,
        itl_counts=np.asarray(gaps or [0, 0, 0], dtype=float),
    )


def test_tpot_excludes_the_first_token_and_one_token_replies():
    records = make([1.0, 1.0], [1.0, 3.0], [1, 5])
    assert statistic(records, "tpot", 0.5) == pytest.approx(0.5)  # 2 s over 4 gaps; the one-token reply has none


@pytest.mark.parametrize("metric", ["tpot", "itl"])
def test_answers_of_one_token_keep_every_limit_between_tokens(metric):
    """Classification with `max_tokens=1`: no gap exists, so none is too long; refusals still count."""
    records = make([1.0] * 3, [1.0] * 3, [1] * 3)
    assert [held_to(records, metric, which) for which in (0.5, 0.99, "mean")] == [0, 0, 0]
    refused = make([1.0] * 9 + [math.nan], [1.0] * 9 + [math.nan], [1] * 10, [FINISHED] * 9 + [REJECTED_CONTEXT])
    assert held_to(refused, metric, 0.5) == 0
    assert held_to(refused, metric, 0.95) is None
    nobody = make([math.nan], [math.nan], [1], [REJECTED_CONTEXT])
    assert held_to(nobody, metric, 0.5) is None
    assert held_to(make([1.0, 1.0], [1.0, 3.0], [1, 5]), "tpot", 0.5) == pytest.approx(0.5)


def test_a_limit_on_itl_is_missed_where_too_many_are_refused():
    """Gaps are counted over tokens, and who is refused has none: without this, 2 of 3 refused would keep `itl:p99`."""
    status = [FINISHED] * 98 + [REJECTED_CONTEXT] * 2
    times = [0.1] * 98 + [math.nan] * 2
    records = make(times, [t + 1 for t in times], [5] * 100, status, gaps=[0, 392, 0])
    assert held_to(records, "itl", 0.95) == statistic(records, "itl", 0.95)
    assert held_to(records, "itl", 0.99) is None
    assert held_to(records, "itl", "mean") == statistic(records, "itl", "mean")


def test_rejected_requests_are_infinitely_slow_in_quantiles_but_not_in_means():
    status = [FINISHED] * 98 + [REJECTED_CONTEXT] * 2
    times = [0.1] * 98 + [math.nan] * 2
    records = make(times, times, [1] * 100, status)
    assert statistic(records, "ttft", 0.95) == pytest.approx(0.1)
    assert statistic(records, "ttft", 0.99) is None
    assert statistic(records, "ttft", "mean") == pytest.approx(0.1)
    metrics = summarize(records)
    assert metrics.rejected == {"exceeds context length": 2}
    assert metrics.requests_per_s == pytest.approx(980)


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_quantiles_are_numpys(values, q):
    records = make(values, values, [1] * len(values))
    assert statistic(records, "ttft", q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9)


def test_goodput_counts_requests_within_every_limit():
    records = make([0.1, 0.1, 3.0], [1.0, 9.0, 4.0], [10, 10, 10])
    slos = (Slo.parse("ttft:p99<2s"), Slo.parse("tpot:p95<500ms"))
    metrics = summarize(records, slos)
    assert metrics.goodput_requests_per_s == pytest.approx(1 / 9)


def test_itl_comes_from_the_histogram_over_tokens():
    records = make([0.1], [1.0], [5], gaps=[0, 90, 10])
    assert 0.01 <= statistic(records, "itl", 0.5) <= 0.1
    assert 0.1 <= statistic(records, "itl", 0.95) <= 1.0
    assert statistic(make([0.1], [0.1], [1]), "itl", 0.5) is None
