"""The engine's scheduler and the simulator, fed the same workload and the same step times, have one history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.engine.scheduler import Scheduler
from fwopt.engine.sequence import Sampling, Sequence
from fwopt.metrics.records import FINISHED
from fwopt.perf.grid import StepGrid
from fwopt.sim import simulate
from fwopt.spec.candidate import Batching, Candidate
from fwopt.spec.step import StepShape

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
BLOCK = 16
LONGEST = 1 << 20


def step_s(grid: StepGrid, shape: StepShape) -> float:
    """What `StepGrid` says of one step."""
    size = next((int(s) for s in grid.capture_sizes if s >= shape.tokens), None)
    gpu = np.interp(size or shape.tokens, grid.tokens, grid.token_graph_s if size else grid.token_eager_s)
    if shape.decodes:
        rows = [np.interp(shape.decodes, grid.decode_batch, column) for column in grid.decode_s.T]
        gpu += np.interp(shape.context_tokens / shape.decodes, grid.decode_context, rows)
    for start, length in shape.chunks:
        cost = np.interp([start, start + length], grid.prefill_length, grid.prefill_s)
        gpu += max(cost[1] - cost[0], grid.prefill_chunk_floor_s)
    if shape.sampled:
        gpu += np.interp(shape.sampled, grid.sample_batch, grid.sample_s)
    return max(gpu, grid.step_cpu_s + shape.sequences * grid.sequence_cpu_s) + grid.serial_s


class History:
    """What happened to each request when the engine's scheduler served a workload under a clock of its own."""

    def __init__(self, workload, grid: StepGrid, blocks: int, batching: Batching) -> None:
        n = len(workload)
        self.scheduled, self.first, self.finish = (np.full(n, np.nan) for _ in range(3))
        self.steps = 0
        scheduler, clock, arrived = Scheduler(batching, blocks, LONGEST), 0.0, 0
        self.sequences = [self._sequence(workload, i) for i in range(n)]
        while arrived < n or scheduler.busy:
            if not scheduler.busy:
                clock = max(clock, workload.arrival_s[arrived])
            while arrived < n and workload.arrival_s[arrived] <= clock:
                scheduler.add(self.sequences[arrived])
                arrived += 1
            step = scheduler.schedule()
            for chunk in step.chunks:
                if np.isnan(self.scheduled[chunk.sequence.id]):
                    self.scheduled[chunk.sequence.id] = clock
            clock += step_s(grid, step.shape) if step.shape.tokens else 0.0
            self.steps += step.shape.tokens > 0
            made_up = [1_000_000 + s.id * 10_000 + s.output_tokens for s in step.sampling]
            for sequence, reason in scheduler.complete(step, made_up):
                if sequence.output_tokens == 1:
                    self.first[sequence.id] = clock
                if reason is not None:
                    self.finish[sequence.id] = clock
        assert scheduler.pool.used == 0
        self.preemptions = scheduler.preemptions

    @staticmethod
    def _sequence(workload, i: int) -> Sequence:
        """A prompt whose blocks are equal to another's where the workload says so."""
        chain = workload.block_ids[workload.block_offsets[i] : workload.block_offsets[i + 1]]
        size = workload.block_tokens
        tokens = [int(c) * size + k for c in chain for k in range(size)]
        tokens += [500_000_000 + i * 100_000 + k for k in range(int(workload.prompt_tokens[i]) - len(tokens))]
        return Sequence.new(i, tokens, Sampling(max_tokens=int(workload.output_tokens[i])))


def check(workload, grid: StepGrid, blocks: int, batching: Batching, longest: int = LONGEST) -> History:
    """The API before the engine is left out: its queue is held against the plain reference."""
    grid = replace(grid, request_s=0.0, prompt_token_s=0.0, front_s=0.0, chunk_s=0.0)
    result = simulate(workload, grid, blocks, Candidate(batching=batching), longest)
    records, history = result.records, History(workload, grid, blocks, batching)
    assert (records.status == FINISHED).all()
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(records.scheduled_s, history.scheduled, **close)
    np.testing.assert_allclose(records.first_token_s, history.first, **close)
    np.testing.assert_allclose(records.finish_s, history.finish, **close)
    assert records.preemptions.tolist() == [s.preemptions for s in history.sequences]
    assert records.cached_tokens.tolist() == [s.cached_tokens for s in history.sequences]
    assert result.iterations == history.steps
    return history


@st.composite
def traffic(draw: st.DrawFn) -> dict:
    n = draw(st.integers(1, 25))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.3, 5.0]), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 120), min_size=n, max_size=n))
    prompt = draw(st.lists(st.integers(1, 600), min_size=n, max_size=n))
    return {"arrival": np.cumsum(gaps), "prompt": prompt, "output": output}


@st.composite
def shared_traffic(draw: st.DrawFn) -> dict:
    """Prompts along the paths of a small tree of prefixes, each node one block, each with a tail of its own."""
    load = draw(traffic())
    n = len(load["prompt"])
    paths = draw(st.lists(st.lists(st.integers(0, 1), min_size=0, max_size=12), min_size=n, max_size=n))
    ids: dict[tuple[int, ...], int] = {}
    chains = [[ids.setdefault(tuple(p[: k + 1]), len(ids)) for k in range(len(p))] for p in paths]
    tails = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    load["prompt"] = [max(1, len(c) * BLOCK + t) for c, t in zip(chains, tails, strict=True)]
    return load | {"chains": chains, "block_tokens": BLOCK}


@st.composite
def limits(draw: st.DrawFn, prefix: bool, roomy: bool = False) -> tuple[Batching, int]:
    seqs = draw(st.sampled_from([1, 2, 7, 64]))
    tokens = draw(st.sampled_from([64, 100, 512, 8192]))
    batching = Batching(
        max_num_seqs=min(seqs, tokens), max_num_batched_tokens=tokens, block_size=BLOCK, prefix_caching=prefix
    )
    return batching, 4000 if roomy else draw(st.sampled_from([46, 60, 100, 4000]))


@SETTINGS
@given(load=traffic(), limit=limits(prefix=False), captured=st.booleans(), host=st.sampled_from([0.0, 1e-3, 2e-3]))
def test_same_history_without_prefixes(load, limit, captured, host, make_workload, make_grid):
    batching, blocks = limit
    grid = make_grid(captured=captured, host=host, lookahead=False)
    check(make_workload(**load), grid, blocks, batching)


@SETTINGS
@given(load=shared_traffic(), limit=limits(prefix=True, roomy=True))
def test_same_history_with_a_prefix_cache(load, limit, make_workload, make_grid):
    batching, blocks = limit
    check(make_workload(**load), make_grid(lookahead=False), blocks, batching)


@SETTINGS
@given(load=traffic(), limit=limits(prefix=True))
def test_a_preempted_sequence_finds_what_is_left_of_its_own_blocks(load, limit, make_workload, make_grid):
    """Nothing is shared here, but a sequence that resumes shares with what it was: prompt and replies alike."""
    batching, blocks = limit
    check(make_workload(**load), make_grid(lookahead=False), blocks, batching)


@SETTINGS
@given(load=traffic(), budget=st.sampled_from([720, 1000, 2048]), blocks=st.sampled_from([46, 100, 4000]))
def test_prompts_are_computed_whole_without_chunked_prefill(load, budget, blocks, make_workload, make_grid):
    batching = Batching(max_num_seqs=64, max_num_batched_tokens=budget, block_size=BLOCK, chunked_prefill=False)
    check(make_workload(**load), make_grid(lookahead=False), blocks, batching, longest=720)


def test_a_prompt_that_does_not_fit_in_what_is_left_of_the_budget_waits(make_workload, make_grid):
    workload = make_workload([0.0] * 3, [600, 600, 100], [1] * 3)
    batching = Batching(max_num_seqs=64, max_num_batched_tokens=1000, block_size=BLOCK, chunked_prefill=False)
    whole = check(workload, make_grid(lookahead=False), 4000, batching, longest=720)
    assert whole.steps == 2
    assert whole.scheduled[0] < whole.scheduled[1] == whole.scheduled[2]


def test_resuming_costs_little_with_a_prefix_cache(make_workload, make_grid):
    workload = make_workload([0.0] * 12, [100] * 12, [110] * 12)
    on, off = (
        Batching(max_num_seqs=64, max_num_batched_tokens=512, block_size=BLOCK, prefix_caching=prefix)
        for prefix in (True, False)
    )
    resumed, anew = (check(workload, make_grid(lookahead=False), 46, batching) for batching in (on, off))
    assert resumed.preemptions > 0
    assert resumed.finish.mean() < anew.finish.mean()


def test_preemption_is_exercised(make_workload, make_grid):
    """The properties above mean little unless blocks really run out somewhere."""
    workload = make_workload([0.0] * 12, [100] * 12, [110] * 12)
    batching = Batching(max_num_seqs=64, max_num_batched_tokens=512, block_size=BLOCK, prefix_caching=False)
    assert check(workload, make_grid(lookahead=False), 46, batching).preemptions > 0
