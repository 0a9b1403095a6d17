"""Rebuilt prompts: lengths exact, shared exactly where the trace's are, the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.live.prompts import Prompts
from fwopt.live.vocabulary import assumed
from fwopt.live.vocabulary import given as given_range
from fwopt.workload.columns import Workload

from .conftest import workload

BLOCK = 4


@st.composite
def traces(draw: st.DrawFn) -> Workload:
    """Requests with chains of blocks from a small alphabet, so that many share prefixes of every length."""
    chains = draw(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=12))
    prompts = [draw(st.integers(max((len(c) - 1) * BLOCK + 1, 1), len(c) * BLOCK + 9)) for c in chains]
    return workload(range(len(chains)), prompts, blocks=chains, block_tokens=BLOCK)


def shared(a: np.ndarray, b: np.ndarray) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a.tolist(), b.tolist(), strict=False)))


def shared_in_trace(w: Workload, i: int, j: int) -> int:
    ids = [w.block_ids[w.block_offsets[k] : w.block_offsets[k + 1]] for k in (i, j)]
    lengths = (int(w.prompt_tokens[i]), int(w.prompt_tokens[j]))
    covered = [min(length, len(own) * w.block_tokens) for length, own in zip(lengths, ids, strict=True)]
    return min(shared(*ids) * w.block_tokens, *covered)


@given(traces(), st.text(max_size=4))
@settings(max_examples=200, deadline=None)
def test_lengths_and_sharing_are_the_traces(w: Workload, salt: str) -> None:
    prompts = Prompts(w, assumed(), salt)
    tokens = [prompts.tokens(i) for i in range(len(w))]
    for i in range(len(w)):
        assert len(tokens[i]) == w.prompt_tokens[i]
    for i, j in combinations(range(len(w)), 2):
        assert shared(tokens[i], tokens[j]) == shared_in_trace(w, i, j)


@given(traces(), st.integers(0, 11))
@settings(max_examples=100, deadline=None)
def test_a_template_in_front_takes_the_place_of_the_first_tokens(w: Workload, reserved: int) -> None:
    prompts = Prompts(w, assumed(), reserved=reserved)
    tokens = [prompts.tokens(i) for i in range(len(w))]
    for i in range(len(w)):
        assert len(tokens[i]) == max(w.prompt_tokens[i] - reserved, 1)
    for i, j in combinations(range(len(w)), 2):
        if min(w.prompt_tokens[i], w.prompt_tokens[j]) > reserved:
            assert shared(tokens[i], tokens[j]) == max(shared_in_trace(w, i, j) - reserved, 0)


def test_equal_ids_are_equal_tokens_and_different_ids_never() -> None:
    n = 5000
    w = workload(range(n), 2, blocks=[[i] for i in range(n)], block_tokens=2)
    prompts = Prompts(w, given_range(100, 200), "x")
    assert len({prompts.tokens(i).tobytes() for i in range(n)}) == n


def test_another_salt_shares_nothing_that_a_cache_could_keep() -> None:
    w = workload(range(50), 64, blocks=[[i // 10, i] for i in range(50)])
    first, second = Prompts(w, assumed(), "a"), Prompts(w, assumed(), "b")
    longest = max(shared(first.tokens(i), second.tokens(j)) for i in range(50) for j in range(50))
    assert longest <= 2


def test_only_tokens_of_the_vocabulary() -> None:
    w = workload(range(20), 500)
    for i in range(20):
        tokens = Prompts(w, given_range(17, 117)).tokens(i)
        assert tokens.min() >= 17
        assert tokens.max() < 117


def test_the_same_tokens_in_every_process() -> None:
    code = (
        "from fwopt.live.prompts import Prompts; from fwopt.live.vocabulary import assumed; "
        "from fwopt.workload.builder import Builder; b = Builder('t', {}); b.block_tokens = 16; "
        "b.add(0.0, 40, 1, blocks=[7, 8]); print(Prompts(b.build('t', 't'), assumed(), 's').tokens(0).tolist())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert Prompts(workload([0.0], 40, blocks=[[7, 8]]), assumed(), "s").tokens(0).tolist() == eval(runs[0].stdout)


def test_too_few_tokens_to_tell_the_blocks_apart() -> None:
    w = workload(range(5000), 2)
    with pytest.raises(InputError, match="5,000 different blocks need a vocabulary of at least 71 tokens, got 64"):
        Prompts(w, given_range(0, 64))
