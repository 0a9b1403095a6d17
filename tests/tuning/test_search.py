"""The search on landscapes whose best is known."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from fwopt.tuning.search import EFFORTS_S, FamilySearch, Measured, run

landscape = runpy.run_path(str(Path(__file__).with_name("landscape.py")))["landscape"]
OVERHEAD_S = 0.02
"""Of any measurement: capturing a graph, warming up."""


def tuned(seed: int) -> tuple[float, float, float]:
    """(time of the workload over that of the exhaustive search's best, of the default's over the best, share of the
    exhaustive search's time)."""
    land = landscape(seed)
    spent = 0.0
    efforts = {effort: i for i, effort in enumerate(EFFORTS_S)}

    def ask(bucket: int, variant: int, effort_s: float) -> Measured:
        nonlocal spent
        spent += OVERHEAD_S + effort_s
        noise = land.noise / np.sqrt(effort_s / EFFORTS_S[0])
        return Measured(land.measure(bucket, variant, effort_s), noise, efforts[effort_s])

    exhaustive_s = land.seconds.size * (OVERHEAD_S + EFFORTS_S[-1])
    family = FamilySearch(land.features, land.places, land.floors_s, land.calls, seed=seed)
    run([family], [ask], lambda: spent < 0.028 * exhaustive_s)
    winners = [family.winner(b) for b in range(len(land.calls))]
    mine = sum(land.calls[b] * land.seconds[b, v] for b, v in enumerate(winners))
    best = float(land.calls @ land.seconds.min(axis=1))
    return mine / best, float(land.calls @ land.seconds[:, 0]) / best, spent / exhaustive_s


@pytest.mark.slow
def test_near_the_best_in_a_twentieth_of_the_time() -> None:
    results = np.asarray([tuned(seed) for seed in range(16)])
    over, default, share = results.T
    assert share.max() <= 0.052
    assert np.median(over) <= 1.01
    assert over.mean() <= 1.02
    assert np.mean(over <= 1.02) >= 0.8, np.sort(over)
    assert over.max() <= 1.10
    assert (over <= default + 0.001).all()


def shallow(variants: int, buckets: int) -> dict:
    return {
        "features": np.arange(variants, dtype=float)[:, None],
        "places": np.arange(buckets, dtype=float)[:, None],
        "floors_s": np.full(buckets, 1e-5),
        "calls": np.arange(1.0, buckets + 1),
    }


def searched(times: np.ndarray, **refuse: str) -> FamilySearch:
    """(B, V) times without noise; variants named `vN` are refused."""
    family = FamilySearch(**shallow(times.shape[1], times.shape[0]))

    def ask(bucket: int, variant: int, effort_s: float) -> Measured | str:
        refusal = refuse.get(f"v{variant}")
        return refusal or Measured(float(times[bucket, variant]), 0.002, EFFORTS_S.index(effort_s))

    assert run([family], [ask], lambda: True)
    return family


def test_without_a_limit_the_best_of_a_small_space_is_found() -> None:
    times = 1e-5 * (1 + np.abs(np.arange(12)[None, :] - np.asarray([[2], [5], [9]])))
    assert [searched(times).winner(b) for b in range(3)] == [2, 5, 9]


def test_equal_measurements_lead_to_equal_searches() -> None:
    times = 1e-5 * (1 + np.random.default_rng(3).random((3, 40)))
    assert searched(times).seen == searched(times).seen


def test_what_cannot_run_is_never_chosen_and_costs_one_question() -> None:
    times = 1e-5 * np.asarray([[3.0, 1.0, 2.0, 2.5]])
    family = searched(times, v1="WrongResultError: out")
    assert family.winner(0) == 2
    assert family.refused == {1: "WrongResultError: out"}
    assert searched(times, v0="no", v1="no", v2="no", v3="no").winner(0) is None


def test_what_does_not_suit_a_size_is_not_measured_there() -> None:
    suits = np.asarray([[True, True, False, True], [True, False, True, True]])
    family, asked = FamilySearch(**shallow(4, 2), suits=suits), set()

    def ask(bucket: int, variant: int, effort_s: float) -> Measured:
        asked.add((bucket, variant))
        return Measured(1e-5 / (1 + variant % 3), 0.002, EFFORTS_S.index(effort_s))

    assert run([family], [ask], lambda: True)
    assert asked <= {(int(b), int(v)) for b, v in np.argwhere(suits)}
    assert [family.winner(b) for b in range(2)] == [1, 2]


def test_the_default_stays_where_nothing_is_surely_faster() -> None:
    assert searched(1e-5 * np.asarray([[1.0, 0.9995, 1.2]])).winner(0) == 0


def test_a_budget_that_is_over_still_times_the_finals() -> None:
    family = FamilySearch(**shallow(5, 2))
    done = run([family], [lambda b, v, e: Measured(1e-5, 0.01, EFFORTS_S.index(e))], lambda: len(family.seen) < 1)
    assert not done
    assert family.winner(1) == 0


def test_most_time_goes_where_the_workload_is() -> None:
    rng = np.random.default_rng(0)
    times = 1e-5 * (1 + rng.random((2, 200)))
    family = FamilySearch(**{**shallow(200, 2), "calls": np.asarray([1.0, 500.0])})
    asked = [0, 0]

    def ask(bucket: int, variant: int, effort_s: float) -> Measured:
        asked[bucket] += 1
        return Measured(float(times[bucket, variant]), 0.002, EFFORTS_S.index(effort_s))

    run([family], [ask], lambda: sum(asked) < 60)
    assert asked[1] > 3 * asked[0]


def test_each_size_has_its_own_default_and_keeps_it_where_nothing_is_faster() -> None:
    family = FamilySearch(**shallow(5, 3), defaults=(0, 0, 4))
    asked = []

    def ask(bucket: int, variant: int, effort_s: float) -> Measured:
        asked.append((bucket, variant))
        return Measured(1e-5, 0.01, EFFORTS_S.index(effort_s))

    run([family], [ask], lambda: True)
    assert asked[0] == (2, 4)
    assert [family.winner(b) for b in range(3)] == [0, 0, 4]
