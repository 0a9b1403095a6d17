"""Logits through the paged cache, in chunks and token by token, against transformers' full forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from fwopt.engine.batch import make_plan
from fwopt.engine.parallel import Ranks
from fwopt.engine.runner import Runner
from fwopt.engine.scheduler import Scheduler
from fwopt.engine.sequence import Sampling, Sequence

from .conftest import MODELS


def prompts(vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(3, vocabulary, n).tolist() for n in (1, 50, 90, 17)]


def logits_by_steps(runner: Runner, texts: list[list[int]], prompt_tokens: list[int]) -> list[torch.Tensor]:
    """Logits after each prefix of each text from its prompt on; what follows the prompt is forced."""
    settings = runner.settings
    scheduler = Scheduler(settings.candidate.batching, 64, settings.max_model_len)
    runner.allocate(64)
    for i, (text, prompt) in enumerate(zip(texts, prompt_tokens, strict=True)):
        scheduler.add(Sequence.new(i, text[:prompt], Sampling(max_tokens=len(text) - prompt + 1)))
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    while scheduler.busy:
        step = scheduler.schedule()
        logits = runner.run(make_plan(step, settings.candidate.batching.block_size))
        forced = []
        for sequence, row in zip(step.sampling, logits, strict=True):
            found[sequence.id].append(row)
            forced.append((texts[sequence.id] + [5])[len(sequence.tokens)])
        scheduler.complete(step, forced)
    return [torch.stack(rows) for rows in found]


def reference(folder, dtype: torch.dtype, texts: list[list[int]]) -> list[torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([text])).logits[0].float() for text in texts]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tokens", [32, 256])
def test_logits_equal_transformers_in_float32(name, tokens, model_folder, make_settings):
    """Prompts in chunks of up to 32 tokens beside decodes, or whole."""
    folder, texts = model_folder(name), prompts(320)
    starts = [1, 30, 70, 16]
    settings = make_settings(folder, {"max_num_batched_tokens": tokens, "max_num_seqs": 3})
    ours = logits_by_steps(Runner(settings, Ranks()), texts, starts)
    for mine, theirs, start in zip(ours, reference(folder, torch.float32, texts), starts, strict=True):
        torch.testing.assert_close(mine, theirs[start - 1 :], rtol=1e-4, atol=1e-4)
