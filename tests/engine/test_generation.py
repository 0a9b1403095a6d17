"""What a request gets does not depend on what else the engine does."""

from __future__ import annotations

import numpy as np
import pytest

from fwopt.engine.sequence import Sampling

GREEDY = Sampling(max_tokens=40, temperature=0.0)


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 320, n).tolist() for n in lengths]


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt-oss"])
def test_greedy_output_is_the_same_alone_and_in_a_batch(name, model_folder, generate):
    texts = prompts([5, 60, 33, 1, 90])
    together, _ = generate(model_folder(name), texts, GREEDY)
    alone = [generate(model_folder(name), [text], GREEDY)[0][0] for text in texts]
    assert together == alone


def test_a_preempted_request_gets_the_same_tokens(model_folder, generate):
    texts = prompts([50] * 6)
    roomy, _ = generate(model_folder("llama"), texts, GREEDY, max_model_len=128)
    tight, counters = generate(model_folder("llama"), texts, GREEDY, max_model_len=128, blocks=20)
    assert counters.preemptions > 0
    assert tight == roomy


def test_a_preempted_seeded_request_gets_the_same_tokens(model_folder, generate):
    texts, drawn = prompts([50] * 6), Sampling(max_tokens=40, temperature=1.0, seed=7)
    roomy, _ = generate(model_folder("llama"), texts, drawn, max_model_len=128)
    tight, counters = generate(model_folder("llama"), texts, drawn, max_model_len=128, blocks=20)
    assert counters.preemptions > 0
    assert tight == roomy


@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
def test_cached_prefixes_change_no_token(name, model_folder, generate):
    shared = prompts([80])[0]
    texts = [shared[:64] + tail for tail in prompts([9, 30, 1], seed=1)] + [shared[:64], shared[:48], shared[:70]]
    batching = {"max_num_seqs": 2}
    with_cache, counters = generate(model_folder(name), texts, GREEDY, batching=batching)
    without, _ = generate(model_folder(name), texts, GREEDY, batching=batching | {"prefix_caching": False})
    assert counters.cached_tokens >= 3 * 64
    assert with_cache == without


def test_a_seed_repeats_and_another_differs(model_folder, generate):
    texts = prompts([20, 20])

    def draw(seed: int) -> list[list[int]]:
        return generate(model_folder("llama"), texts, Sampling(max_tokens=30, temperature=1.5, seed=seed))[0]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_top_k_of_one_is_greedy(model_folder, generate):
    texts = prompts([20, 31])
    greedy, _ = generate(model_folder("llama"), texts, GREEDY)
    assert generate(model_folder("llama"), texts, Sampling(max_tokens=40, temperature=1.0, top_k=1))[0] == greedy
    assert generate(model_folder("llama"), texts, Sampling(max_tokens=40, temperature=1.0, top_p=1e-6))[0] == greedy


def test_stop_ids_end_a_request_but_not_before_min_tokens(model_folder, generate):
    texts = prompts([20])
    free = generate(model_folder("llama"), texts, GREEDY)[0][0]
    at = next(i for i in range(5, 40) if free[i] not in free[:i])
    stop = frozenset({free[at]})
    stopped = generate(model_folder("llama"), texts, Sampling(max_tokens=40, temperature=0.0, stop_ids=stop))[0][0]
    assert stopped == free[: at + 1]
    later = Sampling(max_tokens=40, temperature=0.0, stop_ids=stop, min_tokens=at + 4)
    longer = generate(model_folder("llama"), texts, later)[0][0]
    assert len(longer) >= at + 4
    assert free[at] not in longer[: at + 4 - 1]


def test_a_request_ends_at_the_longest_length(model_folder, generate):
    tokens, _ = generate(model_folder("llama"), prompts([60]), Sampling(max_tokens=999), max_model_len=64)
    assert len(tokens[0]) == 4


def test_gguf_is_read_as_safetensors_are(model_folder, generate, tmp_path):
    """Written with the layout that llama.cpp's converter gives a Llama: queries and keys interleaved."""
    from .gguf_writer import write_gguf

    folder = model_folder("llama")
    file = write_gguf(folder, tmp_path / "model.gguf")
    texts = prompts([20, 50])
    assert generate(file, texts, GREEDY)[0] == generate(folder, texts, GREEDY)[0]
