"""Laws of speculation in the simulator; against the plain implementation it is held in `test_against_reference.py`."""

from __future__ import annotations

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.sim import simulate
from fwopt.sim.state import PREFILL_FIRST
from fwopt.spec.candidate import Batching, Candidate, Parallelism
from fwopt.spec.speculation import NgramDrafter, StepsTaken

NGRAM = NgramDrafter(tokens=3, lookup_min=2, lookup_max=4)


def always(proposed: int, accepted: int) -> StepsTaken:
    return StepsTaken(lengths=(2,), proposed=(proposed,) * 2, accepted=(accepted,) * 2)


def test_nothing_proposed_is_no_speculation(make_workload, make_grid):
    rng = np.random.default_rng(0)
    workload = make_workload(np.cumsum(rng.exponential(0.05, 80)), rng.integers(1, 900, 80), rng.integers(1, 90, 80))
    grid, batching = make_grid(), Batching(max_num_seqs=16, max_num_batched_tokens=512)
    plain = simulate(workload, grid, 400, Candidate(batching=batching), 1 << 20)
    guessing = Candidate(batching=batching, speculation=NGRAM)
    found = simulate(workload, grid, 400, guessing, 1 << 20, guesses=always(0, 0))
    np.testing.assert_allclose(found.records.finish_s, plain.records.finish_s, rtol=1e-9)
    assert found.iterations == plain.iterations
    assert found.records.preemptions.tolist() == plain.records.preemptions.tolist()
    assert found.records.itl_counts.sum() == plain.records.itl_counts.sum()


@pytest.mark.parametrize(("proposed", "accepted", "decode_steps"), [(3, 3, 25), (3, 0, 100), (3, 1, 50), (2, 2, 34)])
def test_a_reply_takes_as_many_steps_as_its_tokens_come_true(
    proposed, accepted, decode_steps, make_workload, make_grid
):
    workload = make_workload([0.0], [50], [101])
    candidate = Candidate(speculation=NGRAM)
    found = simulate(workload, make_grid(), 4000, candidate, 1 << 20, guesses=always(proposed, accepted))
    assert found.iterations == 1 + decode_steps


def test_wrong_guesses_cost_and_right_ones_pay_off(make_workload, make_grid):
    rng = np.random.default_rng(1)
    workload = make_workload(np.zeros(64), rng.integers(50, 400, 64), np.full(64, 128))
    plain = simulate(workload, make_grid(), 9000, Candidate(), 1 << 20).records.finish_s.max()
    ends = [
        simulate(
            workload, make_grid(), 9000, Candidate(speculation=NGRAM), 1 << 20, guesses=always(3, accepted)
        ).records.finish_s.max()
        for accepted in (0, 1, 2, 3)
    ]
    assert ends[0] > plain > ends[3]
    assert ends == sorted(ends, reverse=True)


def test_what_is_not_simulated_is_refused(make_workload, make_grid):
    workload, grid = make_workload([0.0], [50], [10]), make_grid()
    with pytest.raises(InputError, match="under vLLM's scheduler only"):
        simulate(workload, grid, 400, Candidate(speculation=NGRAM), 1 << 20, policy=PREFILL_FIRST, guesses=always(1, 1))
    with pytest.raises(InputError, match="must come with the steps"):
        simulate(workload, grid, 400, Candidate(speculation=NGRAM), 1 << 20)
    with pytest.raises(InputError, match="must come with the steps"):
        simulate(workload, grid, 400, Candidate(), 1 << 20, guesses=always(1, 1))


def test_every_replica_speculates(make_workload, make_grid):
    workload = make_workload(np.zeros(8), [50] * 8, [101] * 8)
    candidate = Candidate(parallelism=Parallelism(replicas=4), speculation=NGRAM)
    found = simulate(workload, make_grid(), 4000, candidate, 1 << 20, guesses=always(3, 3))
    assert 4 * 26 <= found.iterations <= 4 * 30
