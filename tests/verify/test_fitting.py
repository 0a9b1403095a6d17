"""Calibration finds planted factors, and helps on load that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from fwopt.verify.fitting import Observed, adjusted, as_factors, errors, fit
from fwopt.verify.metrics import figures
from fwopt.verify.promise import Promise
from fwopt.workload import Workload
from fwopt.workload.select import window

TRUE = np.array([0.18, -0.25, 1.5])


def _observed(promise: Promise, workload: Workload, theta: np.ndarray = TRUE) -> Observed:
    records = promise.records(workload, lambda grid: adjusted(grid, theta))
    measured = {k: v for k, v in figures(records, promise.pairs).items() if v is not None}
    return Observed(promise, workload, measured)


def test_planted_factors_are_found_and_carry_over(promise: Promise, conversation: Workload) -> None:
    taught = [_observed(promise, window(conversation, a, a + 1200)) for a in (1000, 8000)]
    unseen = [_observed(promise, window(conversation, 14000, 15200))]
    theta = fit(taught)
    decode, prefill, delay = as_factors(theta)
    true_decode, true_prefill, true_delay = as_factors(TRUE)
    assert decode == pytest.approx(true_decode, rel=0.02)
    assert prefill == pytest.approx(true_prefill, rel=0.05)
    assert delay == pytest.approx(true_delay, abs=0.006)
    before, after = errors(unseen, np.zeros(3)), errors(unseen, theta)
    assert max(before.values()) > 0.15
    assert max(after.values()) < 0.03


def test_nothing_to_learn_changes_nothing(promise: Promise, conversation: Workload) -> None:
    theta = fit([_observed(promise, window(conversation, 2000, 2800), np.zeros(3))])
    assert np.abs(theta).max() < 1e-3
