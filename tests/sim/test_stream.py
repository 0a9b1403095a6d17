"""A trace replayed part by part against the same trace replayed whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.metrics import streaming, summarize
from fwopt.metrics.records import FINISHED
from fwopt.sim import simulate
from fwopt.sim.stream import _Stream, simulate_stream
from fwopt.spec.candidate import Batching, Candidate, Parallelism
from fwopt.spec.objective import Slo

SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
BLOCK = 16


def part(workload, start, stop):
    """Requests start..stop; prefix ids keep the names they have in the whole trace."""
    offsets = workload.block_offsets[start : stop + 1]
    columns = (
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "max_tokens",
        "session",
        "parent",
        "model",
        "adapter",
        "tools",
    )
    return replace(
        workload,
        block_offsets=offsets - offsets[0],
        block_ids=workload.block_ids[offsets[0] : offsets[-1]],
        **{name: getattr(workload, name)[start:stop] for name in columns},
    )


def cut(workload, size):
    return [part(workload, k, min(k + size, len(workload))) for k in range(0, len(workload), size)]


def histories(parts, grid, blocks, candidate, max_context):
    """Completions of a stream, by request."""
    stream = _Stream(parts[0], grid, blocks, candidate, max_context, 0, 0, None, ())
    seen = []
    collect = stream._collect

    def keep():
        seen.append(stream.sim.done[: stream.sim.done_count[0]].copy())
        collect()

    stream._collect = keep
    for each in parts:
        stream.feed(each)
    stream.end()
    done = np.concatenate(seen)
    return done[np.argsort(done["request"])], stream


@st.composite
def cases(draw):
    n = draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrival = np.cumsum(rng.exponential(draw(st.sampled_from([0.001, 0.05, 1.0])), n))
    load = {"arrival": arrival, "output": rng.integers(1, 150, n)}
    if draw(st.booleans()):
        ids: dict[tuple[int, ...], int] = {}
        paths = [tuple(rng.integers(0, 2, rng.integers(0, 12)).tolist()) for _ in range(n)]
        chains = [[ids.setdefault(p[: k + 1], len(ids)) for k in range(len(p))] for p in paths]
        load |= {"chains": chains, "block_tokens": BLOCK}
        load["prompt"] = [len(c) * BLOCK + int(t) for c, t in zip(chains, rng.integers(1, 40, n), strict=True)]
    else:
        load["prompt"] = rng.integers(1, 600, n)
    candidate = Candidate(
        batching=Batching(max_num_seqs=draw(st.sampled_from([2, 64])), max_num_batched_tokens=512, block_size=BLOCK),
        parallelism=Parallelism(replicas=draw(st.integers(1, 3))),
        router=draw(st.sampled_from(["round_robin", "least_requests"])),
    )
    return load, candidate, draw(st.sampled_from([50, 70, 1000])), draw(st.integers(1, 30))


@SETTINGS
@given(case=cases())
def test_parts_have_the_history_of_the_whole(case, make_workload, make_grid):
    load, candidate, blocks, size = case
    workload, grid = make_workload(**load), make_grid()
    whole = simulate(workload, grid, blocks, candidate, 700)
    done, _ = histories(cut(workload, size), grid, blocks, candidate, 700)
    records = whole.records
    at = np.flatnonzero(records.status == FINISHED)
    assert done["request"].tolist() == at.tolist()
    assert done["finish"].tobytes() == records.finish_s[at].tobytes()
    assert done["first"].tobytes() == records.first_token_s[at].tobytes()
    assert done["scheduled"].tobytes() == records.scheduled_s[at].tobytes()
    assert done["hit"].tolist() == records.cached_tokens[at].tolist()
    assert done["preempted"].tolist() == records.preemptions[at].tolist()
    assert done["replica"].tolist() == records.replica[at].tolist()


@SETTINGS
@given(case=cases())
def test_metrics_agree_within_the_stated_error(case, make_workload, make_grid):
    load, candidate, blocks, size = case
    workload, grid = make_workload(**load), make_grid()
    slos = (Slo.parse("ttft:p99<0.5s"), Slo.parse("tpot:p95<20ms"))
    whole = simulate(workload, grid, blocks, candidate, 700)
    exact = summarize(whole.records, slos).model_dump()
    result = simulate_stream(cut(workload, size), grid, blocks, candidate, 700, slos=slos)
    rough = result.metrics.model_dump()
    for metric in ("ttft", "tpot", "e2e", "queue"):
        for name, value in exact.pop(metric).items():
            error = 1e-9 if name in ("mean_s", "max_s") else result.quantile_error
            if value is None:
                assert rough[metric][name] is None, (metric, name)
                continue
            assert rough[metric][name] == pytest.approx(value, rel=error, abs=streaming.LEAST_S), (metric, name)
        rough.pop(metric)
    assert rough == exact
    assert result.provenance == whole.provenance
    assert (result.iterations, result.peak_kv_blocks) == (whole.iterations, whole.peak_kv_blocks)
    assert (result.mean_batch, result.busy_share) == (whole.mean_batch, whole.busy_share)


def test_memory_follows_what_is_in_flight_and_cached_not_the_length(make_workload, make_grid):
    """Every request brings 4 prefix ids that never come back: 8,000 in all, and 100 KV blocks to hold them."""
    n, size = 2000, 50
    chains = np.arange(4 * n).reshape(n, 4).tolist()
    workload = make_workload(np.arange(n) * 1.0, [4 * BLOCK + 3] * n, [10] * n, chains, BLOCK)
    candidate = Candidate(batching=Batching(max_num_batched_tokens=2048, block_size=BLOCK))
    _, stream = histories(cut(workload, size), make_grid(), 100, candidate, 4096)
    assert len(stream.sim.slot) <= size + stream.peak
    assert stream.sim.id_present.shape[1] <= 100 + 4 * (size + stream.peak)  # cached, in the part, in flight
    assert len(stream.waiting) == 0


def test_rejected_requests_are_counted(make_workload, make_grid):
    workload = make_workload([0.0, 0.1, 0.2, 0.3], [100, 5000, 900, 100], [10, 10, 200, 10])
    candidate = Candidate(batching=Batching(max_num_batched_tokens=2048))
    metrics = simulate_stream(cut(workload, 1), make_grid(), 60, candidate, 4096).metrics
    assert (metrics.requests, metrics.finished) == (4, 2)
    assert metrics.rejected == {"exceeds context length": 1, "exceeds KV cache": 1}
    assert metrics.ttft.p99_s is None
    assert metrics.ttft.mean_s is not None


def test_parts_that_do_not_follow_each_other_are_one_clear_error(make_workload, make_grid):
    late, early = make_workload([5.0], [10], [5]), make_workload([4.0], [10], [5])
    with pytest.raises(InputError, match=r"a part begins at 4\.0+ s, the one before ends at 5\.0+ s"):
        simulate_stream([late, early], make_grid(), 100, Candidate(), 4096)
    other = make_workload([6.0], [10], [5], [[0]], BLOCK)
    with pytest.raises(InputError, match="prefix blocks of one size"):
        simulate_stream([late, other], make_grid(), 100, Candidate(), 4096)
    with pytest.raises(InputError, match="no requests"):
        simulate_stream([], make_grid(), 100, Candidate(), 4096)
