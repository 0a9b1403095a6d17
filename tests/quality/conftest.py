"""Tiny random models with a tokenizer, and windows over their vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fwopt.quality.windows import Document, Windows, cut

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen2-moe": ("Qwen2Moe", {**_EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3": ("Qwen3", {}),
    "qwen3-moe": ("Qwen3Moe", {**_EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
}
"""Name -> (transformers' class prefix, what differs from `SIZES`). Every family that is streamed is here."""


def save_tokenizer(folder: Path) -> None:
    """Bytes, three special tokens, and words for the ids above."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *alphabet]
    names += [f"w{i}" for i in range(len(names), VOCABULARY)]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of one of `MODELS`, in float32 or bf16."""

    @functools.cache
    def folder(name: str, dtype: torch.dtype = torch.float32) -> Path:
        prefix, extra = MODELS[name]
        path = tmp_path_factory.mktemp(name)
        config = getattr(transformers, f"{prefix}Config")(**(SIZES | extra))
        torch.manual_seed(0)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "norm" not in key and key.endswith(("bias", "sinks")):
                    value.normal_(0.0, 0.3)
                if "norm" in key:
                    value.uniform_(0.5, 1.5)
        model.to(dtype).save_pretrained(path)
        save_tokenizer(path)
        return path

    return folder


@pytest.fixture
def make_windows() -> Callable[..., Windows]:
    """Random tokens of two classes."""

    def make(count: int = 8, window: int = 48, seed: int = 0) -> Windows:
        generator = np.random.default_rng(seed)
        documents = [
            Document(label, generator.integers(3, VOCABULARY, window * count // 2).tolist())
            for label in ("prose", "code")
        ]
        return cut(documents, prefix=(), window=window, max_tokens=count * window, seed=0, vocabulary=VOCABULARY)

    return make
