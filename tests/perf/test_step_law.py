"""Step times of an engine from the outside: a known law comes back, noise does not break physics, gaps are named."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.perf.step_law import StepRows, fit
from fwopt.perf.steps import grid_of

_SPEC = importlib.util.spec_from_file_location("step_service", Path(__file__).with_name("step_service.py"))
sys.modules["step_service"] = step_service = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(step_service)
Law = step_service.Law


def step_s(grid, decoding=0, context=0.0, past=0, tokens=0):
    """One step of the simulator (`sim/scheduler.py`), from the grid; a chunk here completes its prompt."""
    total = np.interp(decoding + tokens, grid.tokens, grid.token_eager_s)
    total += np.interp(decoding + (tokens > 0), grid.sample_batch, grid.sample_s)
    if decoding:
        rows = [np.interp(context, grid.decode_context, row) for row in grid.decode_s]
        total += np.interp(decoding, grid.decode_batch, rows)
        total += np.interp(tokens, [0.0, *grid.tokens], [0.0, *grid.beside_s]) * decoding * context
        total += grid.beside_step_s * (tokens > 0)
    if tokens:
        ends = np.interp([past, past + tokens], grid.prefill_length, grid.prefill_s)
        total += ends[1] - ends[0] + grid.prefill_step_s
    return total


LAWS = st.builds(
    Law,
    fixed_s=st.floats(1e-3, 2e-2),
    token_s=st.floats(1e-5, 1e-3),
    sequence_s=st.floats(1e-5, 3e-3),
    cached_s=st.floats(1e-8, 5e-6),
    quadratic_s=st.floats(0, 1e-7),
    chunk_s=st.floats(0, 5e-3),
    request_s=st.floats(1e-3, 3e-2),
    prompt_token_s=st.floats(0, 5e-6),
    crossing_s=st.just(0.0) | st.floats(1e-9, 1e-6),
    together_s=st.just(0.0) | st.floats(1e-3, 0.2),
)


CONTEXTS_DOMINATE = Law(
    fixed_s=1e-3, token_s=1e-5, sequence_s=1e-5, cached_s=5e-6, quadratic_s=0.0, chunk_s=0.0, request_s=0.015625,
    prompt_token_s=0.0,
)  # fmt: skip


@given(LAWS, st.integers(1, 16), st.floats(1, 2000), st.integers(1, 2040))
@example(CONTEXTS_DOMINATE, 3, 1.0, 1)
@example(CONTEXTS_DOMINATE, 16, 1.0, 1)
@example(replace(CONTEXTS_DOMINATE, fixed_s=0.00390625, sequence_s=0.001953125), 16, 1.0, 1)
@settings(max_examples=200, deadline=None)
def test_a_known_law_comes_back_as_the_simulator_reads_it(law, n, context, tokens):
    grid = grid_of(fit(law.rows(), "toy"), 17, 2048, 2048.0, overlaps=False)  # 16 decode, a prompt joins them
    assert step_s(grid, n, context) == pytest.approx(law.decode(n, context), rel=0.01)
    lone = grid.request_s + tokens * grid.prompt_token_s + step_s(grid, tokens=tokens)
    assert lone == pytest.approx(law.first(tokens), rel=0.03)
    assert step_s(grid, n, context, 0, tokens) == pytest.approx(law.mixed(n, context, 0, tokens), rel=0.05)


def test_a_lone_prompt_is_promised_as_it_was_measured_whatever_prompts_beside_others_took():
    """Two noisy steps of a quick profile, three times as long as the prompt alone: that is the others' doing, or the
    machine's, and says nothing of prompts that nobody decodes beside."""
    law = Law(request_s=0.0, prompt_token_s=0.0)
    rows = law.rows(batches=(1, 4, 8), lengths=(1, 32, 64, 128, 208), beside=(20.0,))
    slow = np.where(rows.phase == "mixed", 3.0, 1.0)
    grid = grid_of(fit(replace(rows, p50_s=rows.p50_s * slow), "toy"), 8, 512, 256.0, overlaps=False)
    for tokens in (1, 32, 64, 128, 208):
        lone = grid.request_s + tokens * grid.prompt_token_s + step_s(grid, tokens=tokens)
        assert lone == pytest.approx(law.first(tokens), rel=0.03), tokens
    assert step_s(grid, 1, 20.0, 0, 128) == pytest.approx(3 * law.mixed(1, 20, 0, 128), rel=0.3)


def test_chunks_after_a_past_tell_attention_from_the_rest():
    law = Law(quadratic_s=1e-7)
    rows = law.rows(lengths=(1, 16, 64, 128, 256, 512))
    chunks = [("mixed", 1, 100.0, past, 512, law.mixed(1, 100, past, 512)) for past in (0, 512, 1024, 1536)]
    columns = [np.concatenate([getattr(rows, name), [c[i] for c in chunks]])
               for i, name in enumerate(("phase", "batch", "context", "past", "tokens", "p50_s"))]  # fmt: skip
    found = fit(StepRows(*columns), "toy")
    assert found.quadratic_s == pytest.approx(law.quadratic_s, rel=1e-3)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_noise_never_makes_more_work_faster_or_a_time_negative(seed):
    rows = Law().rows()
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.15, len(rows)))
    grid = grid_of(fit(replace(rows, p50_s=rows.p50_s * noise), "toy"), 32, 4096, 8192.0, overlaps=False)
    assert (np.diff(grid.token_eager_s) >= 0).all()
    assert (np.diff(grid.decode_s, axis=1) >= -1e-12).all()
    assert (np.diff(grid.prefill_s) >= 0).all()
    for values in (
        grid.token_eager_s,
        grid.decode_s,
        grid.sample_s,
        [grid.request_s, grid.prefill_step_s, grid.beside_step_s],
    ):
        assert np.isfinite(values).all()
        assert (np.asarray(values) >= 0).all()


def test_what_was_measured_and_what_was_not_is_said():
    grid = grid_of(fit(Law().rows(), "toy"), 64, 8192, 8192.0, overlaps=False)
    assert grid.token_share[grid.tokens == 1024][0].tolist() == [1, 0, 0, 0]
    assert grid.token_share[grid.tokens == 8192][0].tolist() == [0, 0, 0, 1]
    at = int(np.flatnonzero(grid.decode_context == 1024)[0])
    assert grid.decode_share[grid.decode_batch == 8][0, at].tolist() == [1, 0, 0, 0]
    assert grid.decode_share[grid.decode_batch == 64][0, at].tolist() == [0, 0, 0, 1], "nobody saw 64 sequences"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (Law().rows(batches=(4, 8)), "needs decode steps of 1 sequence .* got batch sizes 4, 8"),
        (Law().rows(batches=(1,)), "at least one more batch size"),
        (Law().rows(lengths=(16, 64, 128)), "prompts of 1 token .* got lengths 16, 64, 128"),
        (Law().rows(lengths=(1, 64)), "at least two more lengths"),
    ],
)
def test_a_profile_with_holes_is_one_line_that_names_them(rows, words):
    with pytest.raises(InputError, match=words):
        fit(rows, "cpu/vllm-0.32 bf16 tp1")
