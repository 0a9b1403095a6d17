"""When requests are due: laws of each load, and of turns that wait for the turn before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fwopt.errors import InputError
from fwopt.live.load import ClosedLoop, Load, Poisson, Ramp, Recorded, schedule
from fwopt.live.order import Order

from .conftest import workload

RATES = st.floats(0.01, 1e4)


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_recorded_gaps_are_divided(arrivals: list[float], scale: float) -> None:
    w = workload(sorted(arrivals))
    due = schedule(Recorded(rate_scale=scale), w, len(w))
    assert due is not None
    assert due[0] == 0
    np.testing.assert_allclose(np.diff(due) * scale, np.diff(w.arrival_s), atol=1e-6)


@given(st.integers(1, 300), RATES, st.integers(0, 99))
def test_poisson_is_ascending_and_the_seeds_own(n: int, rate: float, seed: int) -> None:
    w = workload(range(n))
    due, again = (schedule(Poisson(rate=rate, seed=seed), w, n) for _ in range(2))
    assert due is not None
    assert again is not None
    assert len(due) == n
    assert (np.diff(due) >= 0).all()
    assert np.array_equal(due, again)


def test_poisson_has_the_rate_and_the_variance_of_poisson() -> None:
    due = schedule(Poisson(rate=50), workload(range(20_000)), 20_000)
    assert due is not None
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.03)


@given(st.integers(2, 200), RATES, RATES)
def test_a_ramp_starts_and_ends_at_its_rates(n: int, start: float, end: float) -> None:
    due = schedule(Ramp(start_rate=start, end_rate=end), workload(range(n)), n)
    assert due is not None
    assert np.isfinite(due).all()
    assert (np.diff(due) > 0).all()
    span = (n - 1) * 2 / (start + end)
    assert due[-1] == pytest.approx(span, rel=1e-3)
    middle = start * due + (end - start) / span * due**2 / 2
    np.testing.assert_allclose(middle, np.arange(n), atol=1e-3 * n)


def test_loads_are_told_apart_by_kind() -> None:
    loads: TypeAdapter[Load] = TypeAdapter(Load)
    for load in (Recorded(), ClosedLoop(concurrency=3), Poisson(rate=2), Ramp(start_rate=1, end_rate=2)):
        assert loads.validate_json(loads.dump_json(load)) == load


def test_more_requests_than_the_trace_has() -> None:
    with pytest.raises(InputError, match="must be 1 to 3"):
        schedule(Recorded(), workload(range(3)), 4)


@st.composite
def sessions(draw: st.DrawFn) -> list[int | None]:
    n = draw(st.integers(1, 25))
    return [draw(st.none() | st.integers(0, i - 1)) if i else None for i in range(n)]


@given(sessions(), st.data())
@settings(deadline=None)
def test_every_request_has_one_fate_and_no_turn_goes_before_its_parent(
    parents: list[int | None], data: st.DataObject
) -> None:
    n = len(parents)
    w = workload([i * 0.5 for i in range(n)], parents=parents)
    due = None if data.draw(st.booleans()) else schedule(Recorded(), w, n)
    order = Order(w, n, due, data.draw(st.none() | st.floats(0, 2)))
    now, sent, over, lost = 0.0, list[int](), dict[int, bool](), set[int]()
    flying: list[int] = []
    while order.unresolved:
        while (found := order.pop(now)) is not None:
            request, was_due = found
            assert was_due <= now
            parent = parents[request]
            assert parent is None or over[parent]
            sent.append(request)
            flying.append(request)
        if flying and (data.draw(st.booleans()) or order.next_due_s() == math.inf):
            request = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            over[request] = data.draw(st.booleans())
            lost |= set(order.ended(request, over[request], now)[1])
        else:
            now = max(now, order.next_due_s()) if order.next_due_s() < math.inf else now + 1
    assert sorted([*sent, *lost]) == list(range(n))


def test_a_later_turn_keeps_its_time_unless_its_parent_is_late() -> None:
    w = workload([0, 1, 5], parents=[None, 0, 1])
    order = Order(w, 3, schedule(Recorded(), w, 3), None)
    assert order.pop(0.0) == (0, 0.0)
    assert order.next_due_s() == math.inf
    order.ended(0, True, 2.5)  # later than the second turn's own time
    assert order.pop(2.5) == (1, 2.5)
    order.ended(1, True, 3.0)
    assert order.pop(4.9) is None
    assert order.pop(5.0) == (2, 5.0)


def test_a_fixed_think_time_counts_from_the_parents_end() -> None:
    w = workload([0, 100], parents=[None, 0])
    order = Order(w, 2, schedule(Recorded(), w, 2), 0.5)
    order.pop(0.0)
    order.ended(0, True, 2.0)
    assert order.next_due_s() == 2.5
