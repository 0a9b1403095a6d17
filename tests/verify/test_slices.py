"""The stretch that is replayed stands for the whole workload, and says how well."""

from __future__ import annotations

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.verify.promise import Promise
from fwopt.verify.slices import choose_slice
from fwopt.workload import Workload
from fwopt.workload.select import window


def test_the_stretch_is_nearer_than_most(promise: Promise, conversation: Workload) -> None:
    chosen = choose_slice(conversation, 2000, promise.figures)
    whole = promise.figures(conversation)
    assert len(chosen.workload) == chosen.slice.stop - chosen.slice.start == 2000
    assert chosen.slice.errors == pytest.approx({k: promise.figures(chosen.workload)[k] / whole[k] - 1 for k in whole})
    others = []
    for start in np.random.default_rng(0).integers(0, len(conversation) - 2000, 40):
        found = promise.figures(window(conversation, int(start), int(start) + 2000))
        others.append(max(abs(found[k] / whole[k] - 1) for k in whole))
    assert chosen.slice.largest_error < np.quantile(others, 0.15)


def test_everything_is_its_own_slice(promise: Promise, conversation: Workload) -> None:
    for count in (None, len(conversation), len(conversation) + 1):
        chosen = choose_slice(conversation, count, promise.figures)
        assert chosen.workload is conversation
        assert chosen.slice.largest_error == 0


def test_an_empty_slice_is_refused(promise: Promise, conversation: Workload) -> None:
    with pytest.raises(InputError, match="at least one request"):
        choose_slice(conversation, 0, promise.figures)
