"""Laws that every simulation keeps, whatever the traffic."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.metrics import summarize
from fwopt.metrics.records import FINISHED, REJECTED_CONTEXT, REJECTED_KV
from fwopt.sim import simulate
from fwopt.sim.reserve import Reservation
from fwopt.sim.state import MIXED, PREFILL_FIRST
from fwopt.sim.stream import _Stream
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


SCHEDULING = st.sampled_from(
    [
        {"policy": MIXED},
        {"policy": MIXED, "states": True},
        {"policy": PREFILL_FIRST},
        {"policy": PREFILL_FIRST, "reservation": Reservation()},
    ]
)


@SETTINGS
@given(run=runs(), scheduling=SCHEDULING, chunk=st.sampled_from([0.0, 1e-5, 2e-3]))
def test_conservation_and_causality(run, scheduling, chunk, make_workload, make_grid):
    load, candidate, blocks = run
    workload, grid = make_workload(**load), make_grid(chunk=chunk)
    result = simulate(workload, grid, blocks, candidate, 1 << 20, **scheduling)
    records = result.records
    assert (records.status == FINISHED).all()
    assert result.peak_kv_blocks <= blocks
    api_s = grid.request_s + grid.front_s + grid.prompt_token_s * records.prompt_tokens
    assert (records.scheduled_s >= records.arrival_s + api_s - 1e-12).all()
    assert (records.first_token_s > records.scheduled_s).all()
    assert (records.finish_s >= records.first_token_s).all()
    assert ((records.finish_s > records.first_token_s) == (records.output_tokens > 1)).all()
    gaps = (records.output_tokens - 1).sum()
    assert records.itl_counts.sum() == pytest.approx(gaps)
    # the gaps fill the time from first to last token, as far as the bins of the histogram are wide
    middles = np.sqrt(records.itl_edges_s[1:] * records.itl_edges_s[:-1])
    shown = (records.finish_s - records.first_token_s).sum()
    assert records.itl_counts @ middles == pytest.approx(shown, rel=0.02, abs=1e-5 * gaps)


@SETTINGS
@given(run=runs(), scheduling=SCHEDULING)
def test_steps_are_counted_by_their_shapes(run, scheduling, make_workload, make_grid):
    """Every token is computed once, in a step of some size; every token but a request's first is decoded over the
    tokens before it and itself."""
    load, candidate, _ = run
    workload = make_workload(**load)
    result = simulate(workload, make_grid(captured=False), 10**6, candidate, 1 << 20, count=True, **scheduling)
    steps, records = result.steps, result.records
    prompt, output = records.prompt_tokens.astype(float), records.output_tokens.astype(float)
    assert steps.steps == result.iterations
    assert steps.token_steps @ steps.tokens == pytest.approx((prompt - records.cached_tokens + output - 1).sum())
    assert steps.decode_steps @ steps.batch == pytest.approx((output - 1).sum())
    contexts = (output - 1) * prompt + output * (output - 1) / 2
    assert steps.decode_steps @ (steps.batch * steps.context) == pytest.approx(contexts.sum())
    chunked = steps.chunk_steps * steps.chunks
    assert chunked @ steps.chunk_tokens == pytest.approx((prompt - records.cached_tokens).sum())
    assert (steps.chunk_context >= steps.chunk_tokens - 1e-9).all()
    whole = chunked.sum() == pytest.approx(len(prompt))  # nobody's prompt was divided: each context is a prompt
    assert not whole or chunked @ steps.chunk_context == pytest.approx(prompt.sum())


@SETTINGS
@given(run=runs(), scheduling=SCHEDULING)
def test_captured_steps_are_counted_at_the_size_they_are_padded_to(run, scheduling, make_workload, make_grid):
    load, candidate, blocks = run
    workload = make_workload(**load)
    plain, padded = (
        simulate(workload, make_grid(captured=captured), blocks, candidate, 1 << 20, count=True, **scheduling)
        for captured in (False, True)
    )
    small = padded.steps.tokens[padded.steps.tokens <= 64]
    assert np.isin(small, [1, 2, 4, 8, 16, 32, 64]).all() or candidate.batching.max_num_batched_tokens < 64
    assert padded.steps.steps == padded.iterations
    assert plain.steps.steps == plain.iterations


@SETTINGS
@given(run=runs(), scheduling=SCHEDULING, shared=st.booleans())
def test_blocks_are_conserved_and_the_clock_is_monotone(run, scheduling, shared, make_workload, make_grid):
    """When all is done no block is held, and what is kept for reuse fits in the cache; completions are in order."""
    load, candidate, blocks = run
    if shared:
        load["chains"] = [[k % 3, 3 + k % 5][: prompt // 16] for k, prompt in enumerate(load["prompt"])]
        load["chains"] = [chain if len(chain) == 2 else [] for chain in load["chains"]]
        load["block_tokens"] = 16
    workload = make_workload(**load)
    stream = _Stream(
        workload, make_grid(), blocks, candidate, 1 << 20, scheduling["policy"], 0, scheduling.get("reservation"), ()
    )
    finished = []
    collect = stream._collect
    stream._collect = lambda: (finished.append(stream.sim.done[: stream.sim.done_count[0]].copy()), collect())
    stream.feed(workload)
    stream.end()
    replica, done = stream.sim.replica, np.concatenate(finished)
    assert len(done) == len(workload)
    assert (replica["used"] == 0).all()
    assert (replica["cached"] <= blocks).all()
    assert (stream.sim.id_refs == 0).all()
    assert (replica[["running", "waiting", "in_front", "decoding", "context_sum"]].tolist()) == [(0,) * 5] * len(
        replica
    )
    for r in range(len(replica)):
        assert (np.diff(done["finish"][done["replica"] == r]) >= 0).all()


@SETTINGS
@given(n=st.integers(2, 40), front=st.sampled_from([0.0, 5e-3, 0.2]), replicas=st.integers(1, 3))
def test_a_burst_enters_the_engine_one_after_another(n, front, replicas, make_workload, make_grid):
    """Each API server takes its requests in order, so that the k-th cannot be scheduled before k times its cost."""
    workload, grid = make_workload([0.0] * n, [50] * n, [5] * n), make_grid(front=front)
    candidate = Candidate(parallelism=Parallelism(replicas=replicas))
    records = simulate(workload, grid, 4000, candidate, 1 << 20).records
    each = front + 50 * grid.prompt_token_s
    order = np.arange(n) // replicas + 1  # the router goes round
    assert (records.scheduled_s >= order * each + grid.request_s - 1e-12).all()
    quick = simulate(workload, make_grid(front=0.0), 4000, candidate, 1 << 20).records
    assert (records.first_token_s >= quick.first_token_s - 1e-12).all()


def test_tokens_wait_for_a_slow_api(make_workload, make_grid):
    """A server that needs longer for the tokens of a step than the engine for the step delays them, by one pass: what
    it has not sent is merged with what comes."""
    workload = make_workload([0.0] * 100, [50] * 100, [40] * 100)
    quick, slow = (
        simulate(workload, make_grid(front=0.0, chunk=chunk), 4000, Candidate(), 1 << 20).records
        for chunk in (0.0, 1e-3)
    )
    np.testing.assert_allclose(slow.finish_s - quick.finish_s, 0.1, rtol=0.02)  # 100 sequences x 1 ms
    assert (slow.first_token_s >= quick.first_token_s).all()


@SETTINGS
@given(run=runs(), scheduling=SCHEDULING)
def test_the_scheduler_cannot_see_output_lengths(run, scheduling, make_workload, make_grid):
    """Until a request ends, the history is the same whatever it would have produced later."""
    load, candidate, _ = run
    longest = int(np.argmax(load["output"]))
    grid = make_grid(chunk=0.0)
    cut = simulate(make_workload(**load), grid, 4000, candidate, 1 << 20, **scheduling).records
    longer = dict(load, output=load["output"].copy())
    longer["output"][longest] += 50
    more = simulate(make_workload(**longer), grid, 4000, candidate, 1 << 20, **scheduling).records
    end = cut.finish_s[longest] - grid.front_s * len(load["prompt"])  # its tokens may have waited behind requests
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
@given(run=runs(), factor=st.sampled_from([0.3, 0.9, 0.999]), scheduling=SCHEDULING)
def test_uniformly_faster_steps_never_slow_a_busy_replica(run, factor, scheduling, make_workload, make_grid):
    """With everything queued at the start the schedule is the same, only quicker: each time scales exactly."""
    load, candidate, blocks = run
    load = dict(load, arrival=np.zeros(len(load["prompt"])))
    alone = candidate.model_copy(update={"parallelism": Parallelism()})
    slow = simulate(make_workload(**load), make_grid(), blocks, alone, 1 << 20, **scheduling).records
    fast = simulate(make_workload(**load), make_grid(factor), blocks, alone, 1 << 20, **scheduling).records
    np.testing.assert_allclose(fast.finish_s, slow.finish_s * factor, rtol=1e-9)


@SETTINGS
@given(run=runs(), scheduling=SCHEDULING)
def test_work_conserving_and_littles_law(run, scheduling, make_workload, make_grid):
    load, candidate, blocks = run
    candidate = candidate.model_copy(update={"parallelism": Parallelism()})
    grid = replace(make_grid(front=0.0, chunk=0.0), request_s=0.0, prompt_token_s=0.0)  # the engine alone
    result = simulate(make_workload(**load), grid, blocks, candidate, 1 << 20, **scheduling)
    records = result.records
    finish = records.finish_s
    # the union of [arrival, finish] intervals is exactly the busy time of a work-conserving server
    order = np.argsort(records.arrival_s)
    busy, end = 0.0, -math.inf
    for i in order:
        busy += max(0.0, finish[i] - max(end, records.arrival_s[i]))
        end = max(end, finish[i])
    span = (records.finish_s.max()) - records.arrival_s.min()
    assert result.busy_share * span == pytest.approx(busy, rel=1e-6)
    # Little: sequences in the batch, averaged over busy time, times busy time = their total residence
    if result.preemptions == 0 and scheduling["policy"] == MIXED:  # else some sit a step out
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
    events = [(t, 1) for t in records.arrival_s] + [(t, -1) for t in records.finish_s]
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
    whole = Candidate(batching=Batching(max_num_batched_tokens=2048, chunked_prefill=False))
    with pytest.raises(InputError, match="max_num_batched_tokens must be at least max_model_len"):
        simulate(make_workload([0.0], [5], [5]), make_grid(), 100, whole, 4096)
