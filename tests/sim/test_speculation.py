"""Speculation in the simulator: against the plain implementation, and laws that need no other one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.metrics.records import FINISHED
from fwopt.sim import simulate
from fwopt.sim.state import PREFILL_FIRST
from fwopt.spec.candidate import Batching, Candidate, Parallelism
from fwopt.spec.speculation import ModelDrafter, NgramDrafter, StepsTaken

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
NGRAM = NgramDrafter(tokens=3, lookup_min=2, lookup_max=4)
DRAFT = ModelDrafter(model="small", tokens=3)


@st.composite
def replies(draw: st.DrawFn) -> StepsTaken:
    one = st.lists(
        st.integers(0, 3).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p))), min_size=1, max_size=20
    )
    found = draw(st.lists(one, min_size=1, max_size=5))
    steps = [step for reply in found for step in reply]
    return StepsTaken(
        lengths=tuple(map(len, found)), proposed=tuple(p for p, _ in steps), accepted=tuple(a for _, a in steps)
    )


@st.composite
def traffic(draw: st.DrawFn) -> dict:
    n = draw(st.integers(1, 25))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.3, 5.0]), min_size=n, max_size=n))
    prompt = draw(st.lists(st.integers(1, 600), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 120), min_size=n, max_size=n))
    return {"arrival": np.cumsum(gaps), "prompt": prompt, "output": output}


@SETTINGS
@given(
    load=traffic(),
    guesses=replies(),
    seqs=st.sampled_from([1, 2, 7, 64]),
    tokens=st.sampled_from([64, 100, 512, 8192]),
    blocks=st.sampled_from([46, 60, 100, 4000]),
    drafter=st.sampled_from([NGRAM, DRAFT]),
    ahead=st.booleans(),
)
def test_same_history_as_step_by_step(
    load, guesses, seqs, tokens, blocks, drafter, ahead, make_workload, make_grid, reference
):
    batching = Batching(max_num_seqs=min(seqs, tokens), max_num_batched_tokens=tokens, block_size=16)
    grid = make_grid(lookahead=ahead)
    grid = replace(grid, lookup_token_s=1e-7, drafter_s=np.linspace(1e-3, 5e-3, len(grid.sample_batch)))
    workload = make_workload(**load)
    candidate = Candidate(batching=batching, speculation=drafter)
    result = simulate(workload, grid, blocks, candidate, 1 << 20, guesses=guesses)
    lookahead = 3 if drafter is DRAFT else 0
    expected = reference(workload, grid, blocks, batching, prefix=False, guesses=guesses, ahead=lookahead)
    records = result.records
    assert (records.status == FINISHED).all()
    np.testing.assert_allclose(records.scheduled_s, [r.scheduled for r in expected], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(records.first_token_s, [r.first for r in expected], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(records.finish_s, [r.finish for r in expected], rtol=1e-9, atol=1e-9)
    assert records.preemptions.tolist() == [r.preempted for r in expected]


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
