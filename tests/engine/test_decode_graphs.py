"""Replayed decode steps compute what launched ones do."""

from __future__ import annotations

import pytest
import torch

from fwopt.engine.sequence import Sampling

from .test_generation import prompts


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt-oss"])
def test_graphs_generate_what_launched_kernels_do(name, model_folder, generate):
    texts, greedy = prompts([5, 60, 33]), Sampling(max_tokens=30, temperature=0.0)
    options = {"device": "cuda", "dtype": "fp32"}
    replayed, _ = generate(model_folder(name), texts, greedy, capture_sizes=(1, 2, 4, 8), **options)
    launched, _ = generate(model_folder(name), texts, greedy, **options)
    assert replayed == launched
