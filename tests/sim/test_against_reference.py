"""The compiled, event-compressed simulator against a plain step-by-step implementation of the same scheduling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.metrics.records import FINISHED
from fwopt.sim import simulate
from fwopt.sim.reserve import Reservation
from fwopt.sim.state import PREFILL_FIRST
from fwopt.spec.candidate import Batching, Candidate, Parallelism
from fwopt.spec.speculation import ModelDrafter, NgramDrafter, StepsTaken

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
BLOCK = 16


@st.composite
def traffic(draw: st.DrawFn, shared: bool) -> dict:
    n = draw(st.integers(1, 25))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.3, 5.0]), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 120), min_size=n, max_size=n))
    if not shared:
        prompt = draw(st.lists(st.integers(1, 600), min_size=n, max_size=n))
        return {"arrival": np.cumsum(gaps), "prompt": prompt, "output": output}
    # chains: a path in a small tree of prefixes, each node one block
    paths = draw(st.lists(st.lists(st.integers(0, 1), min_size=0, max_size=12), min_size=n, max_size=n))
    ids: dict[tuple[int, ...], int] = {}
    chains = [[ids.setdefault(tuple(p[: k + 1]), len(ids)) for k in range(len(p))] for p in paths]
    tails = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    prompt = [max(1, len(c) * BLOCK + t) for c, t in zip(chains, tails, strict=True)]
    return {"arrival": np.cumsum(gaps), "prompt": prompt, "output": output, "chains": chains, "block_tokens": BLOCK}


@st.composite
def limits(draw: st.DrawFn) -> tuple[Batching, int]:
    seqs = draw(st.sampled_from([1, 2, 7, 64]))
    tokens = draw(st.sampled_from([64, 100, 512, 8192]))
    batching = Batching(max_num_seqs=min(seqs, tokens), max_num_batched_tokens=tokens, block_size=BLOCK)
    return batching, draw(st.sampled_from([46, 60, 100, 4000]))


def _compare(result, expected) -> None:
    records = result.records
    assert (records.status == FINISHED).all()
    np.testing.assert_allclose(records.scheduled_s, [r.scheduled for r in expected], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(records.first_token_s, [r.first for r in expected], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(records.finish_s, [r.finish for r in expected], rtol=1e-9, atol=1e-9)
    assert records.preemptions.tolist() == [r.preempted for r in expected]
    assert records.cached_tokens.tolist() == [r.hit for r in expected]


@SETTINGS
@given(
    load=traffic(shared=False),
    limit=limits(),
    captured=st.booleans(),
    ahead=st.booleans(),
    host=st.sampled_from([0.0, 1e-3, 2e-3]),
    front=st.sampled_from([0.0, 2e-4, 3e-2]),
    chunk=st.sampled_from([0.0, 1e-5, 3e-3]),
    pool=st.booleans(),
)
def test_same_history_without_prefixes(
    load, limit, captured, ahead, host, front, chunk, pool, make_workload, make_grid, reference
):
    batching, blocks = limit
    grid = make_grid(captured=captured, host=host, lookahead=ahead, front=front, chunk=chunk)
    grid = replace(grid, beside_s=1e-8 * grid.tokens if pool else None)
    grid = replace(grid, prefill_step_s=host / 2, beside_step_s=host * 3)
    workload = make_workload(**load)
    result = simulate(workload, grid, blocks, Candidate(batching=batching), 1 << 20)
    _compare(result, reference(workload, grid, blocks, batching, prefix=True))


@SETTINGS
@given(load=traffic(shared=True), limit=limits())
def test_same_history_with_a_prefix_cache(load, limit, make_workload, make_grid, reference):
    batching, blocks = limit
    workload, grid = make_workload(**load), make_grid()
    result = simulate(workload, grid, blocks, Candidate(batching=batching), 1 << 20)
    _compare(result, reference(workload, grid, blocks, batching, prefix=True))


@SETTINGS
@given(
    load=traffic(shared=True),
    limit=limits(),
    reserving=st.booleans(),
    most=st.sampled_from([30, 4096]),
    excess=st.lists(st.integers(0, 200), min_size=25, max_size=25),
    front=st.sampled_from([0.0, 3e-2]),
)
def test_same_history_prompts_first(load, limit, reserving, most, excess, front, make_workload, make_grid, reference):
    """SGLang: prompts stop all decoding; with and without its admission by reservation."""
    batching, blocks = limit
    allowed = [output + more for output, more in zip(load["output"], excess, strict=False)]
    workload, grid = make_workload(**load, allowed=allowed), make_grid(front=front)
    rule = Reservation(decay_steps=40, most_tokens=most) if reserving else None
    result = simulate(
        workload, grid, blocks, Candidate(batching=batching), 1 << 20, policy=PREFILL_FIRST, reservation=rule
    )
    _compare(result, reference(workload, grid, blocks, batching, prefix=True, prefill_first=True, rule=rule))


def test_preemption_is_exercised(make_workload, make_grid, reference):
    """The properties above mean little unless blocks really run out somewhere."""
    workload = make_workload([0.0] * 12, [100] * 12, [110] * 12)
    batching = Batching(max_num_seqs=64, max_num_batched_tokens=512, block_size=BLOCK)
    grid = make_grid()
    result = simulate(workload, grid, 46, Candidate(batching=batching), 1 << 20)
    assert result.preemptions > 0
    _compare(result, reference(workload, grid, 46, batching, prefix=True))


def test_retraction_is_exercised(make_workload, make_grid, reference):
    """Clients that allow little more than they get: the reservation decays, then the cache runs out."""
    workload = make_workload([0.0] * 12, [20] * 12, [200] * 12, allowed=[201] * 12)
    batching, grid = Batching(max_num_seqs=64, max_num_batched_tokens=512, block_size=BLOCK), make_grid()
    rule = Reservation(first=0.1, least=0.01, decay_steps=20)
    result = simulate(workload, grid, 70, Candidate(batching=batching), 1 << 20, policy=PREFILL_FIRST, reservation=rule)
    assert result.preemptions > 0
    _compare(result, reference(workload, grid, 70, batching, prefix=True, prefill_first=True, rule=rule))


def test_replicas_are_independent_copies(make_workload, make_grid):
    """Round robin over two replicas equals two single replicas with every other request."""
    n = 60
    arrival = np.cumsum(np.tile([0.0, 0.01, 0.1], n // 3))
    prompt, output = np.arange(n) * 7 % 500 + 1, np.arange(n) * 13 % 90 + 1
    batching = Batching(max_num_seqs=8, max_num_batched_tokens=512)
    grid = make_grid()
    pair = Candidate(batching=batching, parallelism=Parallelism(replicas=2), router="round_robin")
    both = simulate(make_workload(arrival, prompt, output), grid, 100, pair, 1 << 20).records
    for k in range(2):
        alone = make_workload(arrival[k::2], prompt[k::2], output[k::2])
        one = simulate(alone, grid, 100, Candidate(batching=batching), 1 << 20).records
        np.testing.assert_allclose(both.finish_s[k::2], one.finish_s, rtol=1e-12)


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


@SETTINGS
@given(
    load=traffic(shared=False),
    limit=limits(),
    guesses=replies(),
    drafter=st.sampled_from([NgramDrafter(tokens=3), ModelDrafter(model="small", tokens=3)]),
    ahead=st.booleans(),
)
def test_same_history_where_a_drafter_guesses(
    load, limit, guesses, drafter, ahead, make_workload, make_grid, reference
):
    batching, blocks = limit
    grid = make_grid(lookahead=ahead)
    grid = replace(grid, lookup_token_s=1e-7, drafter_s=np.linspace(1e-3, 5e-3, len(grid.sample_batch)))
    workload = make_workload(**load)
    candidate = Candidate(batching=batching, speculation=drafter)
    result = simulate(workload, grid, blocks, candidate, 1 << 20, guesses=guesses)
    more = 3 if drafter.kind == "draft" else 0
    _compare(result, reference(workload, grid, blocks, batching, prefix=True, guesses=guesses, ahead=more))
