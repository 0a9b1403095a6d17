"""Tokens drawn by torch and by the kernels' path: the same rules, and nothing of a batch in a request's draw."""

from __future__ import annotations

import pytest
import torch

from fwopt.engine.sampling import Sampler
from fwopt.engine.sequence import Sampling, Sequence

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt.engine.kernel_sampling import KernelSampler
from fwopt_kernels.choice import Choices
from fwopt_kernels.contract import FALLBACK

CPU = torch.device("cpu")


def samplers() -> list[Sampler]:
    return [Sampler(CPU), KernelSampler(CPU, Choices(default=FALLBACK))]


def sequence(id: int, **wanted: object) -> Sequence:
    return Sequence.new(id, [5] * (id + 3), Sampling(**({"max_tokens": 9} | wanted)))


def test_a_seeded_request_draws_the_same_in_any_batch() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    wanted = [
        {"seed": 7, "temperature": 2.0},
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"seed": 7, "top_k": 20, "top_p": 0.9},
    ]
    for at in (0, 3):
        together, alone = (KernelSampler(CPU, Choices(default=FALLBACK)) for _ in range(2))
        batch = [sequence(i, **w) for i, w in enumerate(wanted)]
        one = sequence(at, **wanted[at])
        for _ in range(5):
            tokens = together(logits.clone(), batch)
            (token,) = alone(logits[at : at + 1].clone(), [one])
            assert token == tokens[at]
            for s, t in zip((*batch, one), (*tokens, token), strict=True):
                s.tokens.append(t)


def test_a_request_without_a_seed_draws_another_text_each_time() -> None:
    for sampler in samplers():
        texts = set()
        for _ in range(3):
            rows = [sequence(i) for i in range(6)]
            texts.add(tuple(sampler(torch.zeros(6, 500), rows)))
            for row in rows:
                sampler.forget(row)
        assert len(texts) == 3


@pytest.mark.parametrize("at", [0, 1], ids=["torch", "kernels"])
def test_what_is_kept_and_what_is_banned(at: int) -> None:
    """Ties at the last that top-k keeps stay; end tokens may not come before `min_tokens`."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 2.0, 1.0, 0.0]])
    cases = (
        ({"top_k": 3}, {0, 1, 2, 3}),
        ({"top_k": 2, "top_p": 0.58}, {0}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_k": 2, "min_tokens": 2, "stop_ids": frozenset({0})}, {1, 2, 3}),
        ({"temperature": 0.0, "min_tokens": 2, "stop_ids": frozenset({0})}, {1}),
    )
    for wanted, tokens in cases:
        rows = [sequence(i, **({"temperature": 3.0, "seed": i} | wanted)) for i in range(200)]
        assert set(samplers()[at](logits.repeat(200, 1), rows)) == tokens, wanted


def test_the_engine_draws_by_kernels_where_it_runs_them(model_folder, generate) -> None:
    """On a processor their torch fallback; a seed repeats, and does so for one request of a batch."""
    drawn = Sampling(max_tokens=12, temperature=1.5, seed=3, top_k=40)
    options = {"dtype": "bf16", "operators": "triton"}
    texts = [[9, 8, 7], [4, 5, 6, 7]]
    first, _ = generate(model_folder("llama"), texts, drawn, **options)
    assert generate(model_folder("llama"), texts, drawn, **options)[0] == first
    assert len({tuple(t) for t in first}) == 2
