"""From chunk times to rows: what an engine of a known law shows from outside gives that law back."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.collect.probes import (
    Limits,
    Probe,
    Sample,
    chunk_tokens,
    contexts,
    decode_samples,
    mixed_samples,
    plan,
    rows_of,
)
from fwopt.collect.steps_profile import step_rows
from fwopt.collect.stream import Asker, Stream
from fwopt.live.endpoint import Endpoint
from fwopt.perf.step_law import fit

LIMITS = Limits(32, 2048, 2048)


def decoding(law, n, prompt, tokens=48, merged=1):
    """n sequences whose prompts were computed one after another, then decode together."""
    clock, streams = 0.0, []
    for _ in range(n):
        clock += law.first(prompt)
        streams.append([clock])
    for step in range(tokens - 1):
        clock += law.decode(n, prompt + 1 + step)
        for chunks in streams:
            chunks.append(clock)
    return [Stream(0.0, chunks[::merged], len(chunks)) for chunks in streams]


def beside(law, n, prompt, budget=2048, plain=30, after=8):
    """n sequences decode; a prompt comes in between, in chunks if it must; then they go on."""
    clock, times, context = 1.0, [1.0], float(after)
    for _ in range(plain):
        context += 1
        clock += law.decode(n, context)
        times.append(clock)
    sent, past = clock - 1e-4, 0
    for tokens in chunk_tokens(prompt, budget - n):
        context += 1
        step = law.mixed(n, context, past, tokens)
        clock, past = clock + step - (law.sequence_s if past + tokens < prompt else 0), past + tokens
        times.append(clock)
    first = clock - 1e-9
    for _ in range(20):
        context += 1
        clock += law.decode(n, context)
        times.append(clock)
    return [Stream(0.0, list(times), len(times)) for _ in range(n)], Stream(sent, [first], 1)


@pytest.mark.parametrize("merged", [1, 2])
def test_windows_give_the_step_even_where_the_front_end_merges_tokens(law_of, merged):
    law = law_of()
    found = decode_samples(Probe("decode", 4, 500), decoding(law, 4, 500, merged=merged))
    assert len(found) >= 4
    assert np.median([s.seconds for s in found]) == pytest.approx(law.decode(4, 524), rel=0.02)
    assert found[0].context == pytest.approx(524, abs=4)


def test_sequences_that_never_decode_together_say_nothing(law_of):
    a, b = decoding(law_of(), 1, 10)[0], decoding(law_of(), 1, 10)[0]
    later = Stream(99.0, [t + 99 for t in b.chunk_s], b.tokens)
    assert decode_samples(Probe("decode", 2, 10), [a, later]) == []


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("prompt", [64, 1024])
def test_a_prompt_beside_others_costs_what_it_added_to_their_steps(law_of, n, prompt):
    law = law_of()
    streams, asked = beside(law, n, prompt)
    (found,) = mixed_samples(Probe("mixed", n, prompt, beside=8), streams, asked, 1.0, LIMITS)
    assert found.context == pytest.approx(40, abs=2)
    assert found.seconds == pytest.approx(law.mixed(n, 40, 0, prompt), rel=0.03)
    assert (found.batch, found.past, found.tokens) == (n, 0, prompt)


def test_a_prompt_beyond_the_budget_gives_a_row_a_chunk(law_of):
    law, limits = law_of(quadratic_s=2e-7), Limits(32, 512, 4096)
    streams, asked = beside(law, 2, 1800, budget=512)
    found = mixed_samples(Probe("mixed", 2, 1800), streams, asked, 1.0, limits)
    assert [(s.past, s.tokens) for s in found] == [(0, 510), (510, 510), (1020, 510), (1530, 270)]
    assert found[2].seconds == pytest.approx(law.mixed(2, 40, 1020, 510), rel=0.05)


@given(
    st.floats(1e-3, 2e-2), st.floats(5e-5, 1e-3), st.floats(1e-4, 3e-3), st.floats(1e-7, 5e-6), st.floats(0, 1e-7),
    st.floats(0, 5e-3), st.just(0.0) | st.floats(1e-8, 3e-7),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_the_planned_questions_suffice_to_learn_a_law(
    law_of, fixed, token, sequence, cached, quadratic, chunk, crossing
):
    law = law_of(fixed, token, sequence, cached, quadratic, chunk, prompt_token_s=0, crossing_s=crossing)
    samples: list[Sample] = []
    for probe in plan(LIMITS):
        if probe.kind == "prefill":
            samples.append(Sample("prefill", 0, 0.0, 0, probe.tokens, law.first(probe.tokens)))
        elif probe.kind == "decode":
            samples += decode_samples(probe, decoding(law, probe.batch, probe.tokens))
        else:
            seen = beside(law, probe.batch, probe.tokens, after=probe.beside)
            samples += mixed_samples(probe, *seen, 1.0, LIMITS)
    rows = rows_of(samples, {"model": "toy"})
    assert all(row["samples"] >= 2 and row["model"] == "toy" for row in rows), "both turns fall on the same points"
    found = fit(step_rows(rows), "toy")
    for n, context in ((1, 100.0), (6, 700.0), (32, 200.0)):
        assert found.decode.time(n, context) == pytest.approx(law.decode(n, context), rel=0.03)
    crossed = float(found.beside(np.asarray([128.0]))[0]) * 15 * 300
    assert crossed == pytest.approx(crossing * 128 * 15 * 300, rel=0.1, abs=0.02 * law.mixed(15, 300, 0, 128))
    assert found.chunk_s == pytest.approx(law.chunk_s, abs=0.02 * law.mixed(4, 40, 0, 256) + 2e-4)


def test_questions_fit_the_engine_and_come_again_in_a_later_turn():
    probes = plan(Limits(6, 512, 700))
    assert {p.batch for p in probes if p.kind == "decode"} == {1, 2, 3, 4, 6}
    assert {(p.batch, p.beside) for p in probes if p.kind == "mixed"} == {(n, c) for n in (1, 4, 5) for c in (8, 256)}
    assert max(p.tokens for p in probes) == 700 - 48
    assert len({(p.kind, p.batch, p.tokens, p.beside) for p in probes}) * 2 == len(probes)
    quick = plan(LIMITS, quick=True)
    assert len(quick) * 3 < len(plan(LIMITS))
    assert {1, 32} <= {p.batch for p in quick if p.kind == "decode"}


def test_long_contexts_are_asked_of_few_sequences_only():
    assert contexts(1, 2000) == [32, 512, 1536]
    assert contexts(16, 2000) == [32, 512]
    assert contexts(256, 2000) == [32]


def test_a_lone_token_without_text_is_timed(stub):
    """vLLM sends half a character as an event without text, and closes the answer with it."""
    stub.text = ""

    async def ask() -> Stream:
        asker = Asker(Endpoint(stub.url, "toy", "vllm"))
        try:
            return await asker.complete([1, 2, 3], 1)
        finally:
            asker.close()

    assert len(asyncio.run(ask()).chunk_s) == 1
