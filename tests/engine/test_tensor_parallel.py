"""Two ranks (gloo, real processes) compute what one does."""

from __future__ import annotations

import pytest

from fwopt.engine.sequence import Sampling
from fwopt.errors import InputError
from fwopt.spec.candidate import Parallelism

from .test_generation import prompts

GREEDY = Sampling(max_tokens=12, temperature=0.0)


@pytest.mark.parametrize("name", ["llama-tied-biased", "qwen3-moe", "gpt-oss"])
def test_two_ranks_generate_what_one_does(name, model_folder, generate):
    texts = prompts([5, 60, 33])
    two = {"parallelism": Parallelism(tp=2)}
    assert (
        generate(model_folder(name), texts, GREEDY, candidate=two)[0] == generate(model_folder(name), texts, GREEDY)[0]
    )


def test_ranks_share_key_value_heads_when_there_are_fewer(model_folder, generate):
    texts = prompts([5, 60])
    four = {"parallelism": Parallelism(tp=4)}
    one = generate(model_folder("qwen3"), texts, GREEDY)[0]
    assert generate(model_folder("qwen3"), texts, GREEDY, candidate=four)[0] == one


def test_heads_that_do_not_divide_are_refused_and_no_process_is_left(model_folder, generate):
    with pytest.raises(InputError, match="attention heads must be divisible by tp"):
        generate(model_folder("llama"), prompts([5]), GREEDY, candidate={"parallelism": Parallelism(tp=3)})
