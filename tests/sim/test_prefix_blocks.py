"""Prefix ids that stand for several KV blocks are kept, found and counted as the blocks they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.metrics.records import FINISHED
from fwopt.sim import simulate
from fwopt.spec.candidate import Batching, Candidate

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
BLOCK = 16


def test_a_prompt_that_fills_the_cache_is_served_again(make_workload, make_grid):
    """63 cached blocks are found, and the last one is computed anew: 64 in all, as many as there are."""
    for chains, size in ([[0, 1]] * 2, 512), ([list(range(64))] * 2, BLOCK):
        workload = make_workload([0.0, 5.0], [1024, 1024], [1, 1], chains, block_tokens=size)
        result = simulate(workload, make_grid(), 64, Candidate(), 1 << 20)
        assert result.peak_kv_blocks == 64
        assert result.records.cached_tokens.tolist() == [0, 1008]


@SETTINGS
@given(data=st.data(), blocks_an_id=st.integers(2, 6), budget=st.sampled_from([40, 100, 2048]))
def test_long_ids_are_the_blocks_they_stand_for(data, blocks_an_id, budget, make_workload, make_grid):
    """Where nothing has to be forgotten, ids of several blocks and an id for every block have one history."""
    n = data.draw(st.integers(1, 20))
    paths = data.draw(st.lists(st.lists(st.integers(0, 1), max_size=3), min_size=n, max_size=n))
    ids: dict[tuple[int, ...], int] = {}
    long = [[ids.setdefault(tuple(p[: k + 1]), len(ids)) for k in range(len(p))] for p in paths]
    short = [[i * blocks_an_id + k for i in chain for k in range(blocks_an_id)] for chain in long]
    tails = data.draw(st.lists(st.sampled_from([0, 0, 1, 20]), min_size=n, max_size=n))
    prompt = [max(1, len(c) * BLOCK + t) for c, t in zip(short, tails, strict=True)]
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.001, 0.3]), min_size=n, max_size=n))
    output = data.draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    candidate = Candidate(batching=Batching(max_num_seqs=8, max_num_batched_tokens=budget, block_size=BLOCK))
    found, expected = (
        simulate(
            make_workload(np.cumsum(gaps), prompt, output, chains, block_tokens=size),
            make_grid(), 4000, candidate, 1 << 20,
        )
        for chains, size in ((long, blocks_an_id * BLOCK), (short, BLOCK))
    )  # fmt: skip
    assert (found.records.status == FINISHED).all()
    np.testing.assert_array_equal(found.records.finish_s, expected.records.finish_s)
    assert found.records.cached_tokens.tolist() == expected.records.cached_tokens.tolist()
    # an id is held whole or not at all: of its last block, computed anew, there may be a copy more or less
    assert abs(found.peak_kv_blocks - expected.peak_kv_blocks) <= len(ids)


@pytest.mark.parametrize("kv_blocks", [4000, 90])
def test_what_a_server_says_it_found_gives_the_history_of_finding_it(make_workload, make_grid, kv_blocks):
    """Prompts keep their length for attention and tokenizing. In a small cache each then holds blocks of its own."""
    n = 60
    shared = make_workload(
        np.cumsum(np.random.default_rng(3).exponential(0.02, n)), [161 + 16 * (k % 5) for k in range(n)], [9] * n,
        [[k % 3 * 10 + j for j in range(10)] for k in range(n)], 16,
    )  # fmt: skip
    arguments = make_grid(), kv_blocks, Candidate(batching=Batching(max_num_seqs=64, max_num_batched_tokens=512)), 4096
    found = simulate(shared, *arguments).records
    assert found.cached_tokens.sum() > 5000
    stated = simulate(shared, *arguments, cached_tokens=found.cached_tokens).records
    np.testing.assert_array_equal(stated.prompt_tokens, found.prompt_tokens)
    if kv_blocks == 4000:
        np.testing.assert_array_equal(stated.cached_tokens, found.cached_tokens)
        np.testing.assert_allclose(stated.finish_s, found.finish_s)
    else:
        assert stated.finish_s.max() >= found.finish_s.max()
    none = simulate(shared, *arguments, cached_tokens=np.zeros(n, np.int32)).records
    assert none.cached_tokens.sum() == 0
    assert none.finish_s.max() > stated.finish_s.max()
