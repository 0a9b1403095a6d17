"""Laws that every simulation keeps, whatever the traffic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.metrics import summarize
from fwopt.metrics.records import FINISHED, REJECTED_CONTEXT, REJECTED_KV
from fwopt.sim import simulate
from fwopt.sim.state import PREFILL_FIRST
from fwopt.spec.candidate import Batching, Candidate, Parallelism

SETTINGS = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict, Candidate, int]:
    n = draw(st.integers(1, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    load = {
        "arrival": np.cumsum(rng.exponential(draw(st.sampled_from([0.001, 0.05, 1.0])), n)),
        "prompt": rng.integers(1, 700, n),
        "output": rng.integers(1, 200, n),
    }
    tokens = draw(st.sampled_from([64, 512, 8192]))
    batching = Batching(max_num_seqs=min(tokens, draw(st.sampled_from([1, 8, 256]))), max_num_batched_tokens=tokens)
    parallelism = Parallelism(replicas=draw(st.integers(1, 4)))
    router = draw(st.sampled_from(["round_robin", "least_requests"]))
    candidate = Candidate(batching=batching, parallelism=parallelism, router=router)
    return load, candidate, draw(st.sampled_from([58, 90, 1000]))


@SETTINGS
@given(run=runs(), policy=st.sampled_from([0, PREFILL_FIRST]))
def test_conservation_and_causality(run, policy, make_workload, make_grid):
    load, candidate, blocks = run
    workload = make_workload(**load)
    result = simulate(workload, make_grid(), blocks, candidate, 1 << 20, policy=policy)
    records = result.records
    assert (records.status == FINISHED).all()
    assert result.peak_kv_blocks <= blocks
    assert (records.scheduled_s >= records.arrival_s).all()
    assert (records.first_token_s > records.scheduled_s).all()
    assert (records.finish_s >= records.first_token_s).all()
    assert ((records.finish_s > records.first_token_s) == (records.output_tokens > 1)).all()
    gaps = (records.output_tokens - 1).sum()
    assert records.itl_counts.sum() == pytest.approx(gaps)


@SETTINGS
@given(run=runs())
def test_the_scheduler_cannot_see_output_lengths(run, make_workload, make_grid):
    """Until a request ends, the history is the same whatever it would have produced later."""
    load, candidate, _ = run
    longest = int(np.argmax(load["output"]))
    cut = simulate(make_workload(**load), make_grid(), 4000, candidate, 1 << 20).records
    longer = dict(load, output=load["output"].copy())
    longer["output"][longest] += 50
    more = simulate(make_workload(**longer), make_grid(), 4000, candidate, 1 << 20).records
    end = cut.finish_s[longest] - 1e-3 - load["prompt"][longest] * 1e-7  # the API's share is outside the engine loop
    before = cut.scheduled_s < end - 1e-9
    np.testing.assert_allclose(cut.scheduled_s[before], more.scheduled_s[before], rtol=1e-12)


@SETTINGS
@given(run=runs())
def test_same_input_same_bytes(run, make_workload, make_grid):
    load, candidate, blocks = run
    first, second = (simulate(make_workload(**load), make_grid(), blocks, candidate, 1 << 20) for _ in range(2))
    assert first.records.finish_s.tobytes() == second.records.finish_s.tobytes()
    assert first.provenance == second.provenance


@SETTINGS
@given(run=runs(), factor=st.sampled_from([0.3, 0.9, 0.999]))
def test_uniformly_faster_steps_never_slow_a_busy_replica(run, factor, make_workload, make_grid):
    """With everything queued at the start the schedule is the same, only quicker: each time scales exactly."""
    load, candidate, blocks = run
    load = dict(load, arrival=np.zeros(len(load["prompt"])))
    alone = candidate.model_copy(update={"parallelism": Parallelism()})
    slow = simulate(make_workload(**load), make_grid(), blocks, alone, 1 << 20).records
    fast = simulate(make_workload(**load), make_grid(factor), blocks, alone, 1 << 20).records
    np.testing.assert_allclose(fast.finish_s, slow.finish_s * factor, rtol=1e-9)


@SETTINGS
@given(run=runs())
def test_work_conserving_and_littles_law(run, make_workload, make_grid):
    load, candidate, blocks = run
    candidate = candidate.model_copy(update={"parallelism": Parallelism()})
    result = simulate(make_workload(**load), make_grid(), blocks, candidate, 1 << 20)
    records = result.records
    api = 1e-3 + records.prompt_tokens * 1e-7
    finish = records.finish_s - api
    # the union of [arrival, finish] intervals is exactly the busy time of a work-conserving server
    order = np.argsort(records.arrival_s)
    busy, end = 0.0, -math.inf
    for i in order:
        busy += max(0.0, finish[i] - max(end, records.arrival_s[i]))
        end = max(end, finish[i])
    span = (records.finish_s.max()) - records.arrival_s.min()
    assert result.busy_share * span == pytest.approx(busy, rel=1e-6)
    # Little: sequences in the batch, averaged over busy time, times busy time = their total residence
    if result.preemptions == 0:
        residence = (finish - records.scheduled_s).sum()
        assert result.mean_batch * busy == pytest.approx(residence, rel=1e-6)


def test_requests_beyond_the_context_or_the_cache_are_rejected_aloud(make_workload, make_grid):
    workload = make_workload([0.0, 0.1, 0.2], [100, 5000, 900], [10, 10, 200])
    candidate = Candidate(batching=Batching(max_num_batched_tokens=2048))
    records = simulate(workload, make_grid(), 60, candidate, 4096).records
    assert records.status.tolist() == [FINISHED, REJECTED_CONTEXT, REJECTED_KV]
    metrics = summarize(records)
    assert metrics.finished == 1
    assert metrics.rejected == {"exceeds context length": 1, "exceeds KV cache": 1}
    assert metrics.ttft.p99_s is None  # infinite
    assert metrics.ttft.mean_s is not None


def test_closed_load_keeps_the_number_in_flight(make_workload, make_grid):
    workload = make_workload([0.0] * 40, [50] * 40, [30] * 40)
    records = simulate(workload, make_grid(), 4000, Candidate(), 1 << 20, concurrency=4).records
    api = 1e-3 + 50 * 1e-7
    events = [(t, 1) for t in records.arrival_s] + [(t, -1) for t in records.finish_s - api]
    level, seen = 0, set()
    for _, change in sorted(events, key=lambda e: (e[0], e[1])):
        level += change
        seen.add(level)
    assert max(seen) == 4
    assert (records.status == FINISHED).all()


def test_prefix_cache_saves_prompt_tokens(make_workload, make_grid):
    chains = [[0, 1, 2, 3]] * 5
    workload = make_workload([0.0, 10, 20, 30, 40], [64 * 16 + 5] * 5, [20] * 5, chains, block_tokens=256)
    on = simulate(workload, make_grid(), 4000, Candidate(), 1 << 20).records
    off = simulate(workload, make_grid(), 4000, Candidate(batching=Batching(prefix_caching=False)), 1 << 20).records
    assert on.cached_tokens.tolist() == [0, 1024, 1024, 1024, 1024]
    assert off.cached_tokens.sum() == 0
    assert (on.first_token_s[1:] < off.first_token_s[1:]).all()


@pytest.mark.parametrize("concurrency", [0, -3])
def test_impossible_loads_are_one_clear_error(make_workload, make_grid, concurrency):
    with pytest.raises(InputError, match="closed load"):
        simulate(make_workload([0.0], [5], [5]), make_grid(), 100, Candidate(), 100, concurrency=concurrency)
    odd = Candidate(batching=Batching(max_num_seqs=64, max_num_batched_tokens=32))
    with pytest.raises(InputError, match="max_num_batched_tokens must be at least max_num_seqs"):
        simulate(make_workload([0.0], [5], [5]), make_grid(), 100, odd, 100)
