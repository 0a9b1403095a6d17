"""Few shapes that stand for many."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.tuning.buckets import CLOSE, _groups, place


def distance(points: np.ndarray, weights: np.ndarray, buckets: list) -> float:
    total = sum((weights[b.members] * np.abs(np.log2(points[b.members, 0] / b.point[0]))).sum() for b in buckets)
    return float(total / weights.sum())


def best(logs: np.ndarray, weights: np.ndarray, groups: int) -> float:
    """By trying every division."""
    found = np.inf
    for inner in itertools.combinations(range(1, len(logs)), groups - 1):
        ends = [0, *inner, len(logs)]
        cost = 0.0
        for low, high in itertools.pairwise(ends):
            part, mass = logs[low:high], weights[low:high]
            cost += min((mass * np.abs(part - centre)).sum() for centre in part)
        found = min(found, cost)
    return float(found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9000), st.floats(0.01, 100)), min_size=2, max_size=9), st.integers(1, 4))
def test_no_division_is_better(pairs, most):
    sizes = np.unique([size for size, _ in pairs])
    logs, weights = np.log2(sizes.astype(float)), np.asarray([w for _, w in pairs][: len(sizes)])
    ends = _groups(logs, weights, 0.0, most)
    assert len(ends) <= most
    cost = 0.0
    for low, high in itertools.pairwise([0, *ends]):
        part, mass = logs[low:high], weights[low:high]
        cost += min((mass * np.abs(part - centre)).sum() for centre in part)
    assert cost <= best(logs, weights, min(most, len(sizes))) + 1e-9


def test_every_shape_belongs_to_one_bucket_and_few_suffice():
    rng = np.random.default_rng(1)
    points = np.unique(np.rint(2 ** rng.normal(5, 2, 3000)).astype(np.int64).clip(1, 8192))[:, None]
    weights = rng.exponential(1, len(points))
    buckets = place(points, weights)
    assert sorted(i for b in buckets for i in b.members) == list(range(len(points)))
    assert len(buckets) <= 12
    assert distance(points, weights, buckets) < 0.25
    assert {b.point[0] for b in buckets} <= set(points[:, 0])


def test_captured_sizes_that_take_all_the_time_are_tuned_themselves():
    points = np.asarray([[1], [2], [4], [8], [500], [700]])
    weights = np.asarray([1e3, 1.0, 1e3, 1e3, 0.1, 0.1])
    assert {1, 4, 8} <= {b.point[0] for b in place(points, weights, close=CLOSE / 10)}


def test_two_dimensions():
    points = np.asarray([[b, c] for b in (1, 2, 32, 64) for c in (100, 120, 4000)])
    buckets = place(points, np.ones(len(points)), close=0.3)
    assert sorted(i for b in buckets for i in b.members) == list(range(len(points)))
    for bucket in buckets:
        assert any((points == bucket.point).all(axis=1))
    assert len(buckets) < len(points)
