"""Tiny random models of each architecture, written as Hugging Face writes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fwopt.engine.architecture import read_architecture
from fwopt.engine.core import Engine
from fwopt.engine.sequence import Sampling
from fwopt.engine.settings import Settings
from fwopt.spec.candidate import Batching, Candidate

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_theta": 10_000.0}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("Qwen3", {}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "qwen3-moe-normalized": (
        "Qwen3Moe",
        {
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
}  # fmt: skip
"""Name -> (transformers' class prefix, what differs from `SIZES`)."""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of one of `MODELS`, in float32."""

    @functools.cache
    def folder(name: str) -> Path:
        prefix, extra = MODELS[name]
        path = tmp_path_factory.mktemp(name)
        config = getattr(transformers, f"{prefix}Config")(**(SIZES | extra))
        torch.manual_seed(0)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "norm" not in key and (key.endswith(("bias", "sinks"))):
                    value.normal_(0.0, 0.3)
                if "norm" in key:
                    value.uniform_(0.5, 1.5)
        model.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., Settings]:
    """Settings for a folder; `batching` and other fields by keyword."""

    def make(folder: Path, batching: dict[str, Any] | None = None, **fields: Any) -> Settings:
        limits = {"max_num_seqs": 8, "max_num_batched_tokens": 64} | (batching or {})
        candidate = Candidate(batching=Batching(**limits), **fields.pop("candidate", {}))
        defaults = {"max_model_len": 256, "dtype": "fp32", "kv_cache_bytes": 1 << 24, "threads": 1}
        if folder.suffix == ".gguf":
            from fwopt.engine.gguf_file import read_gguf_architecture as read
        else:
            read = read_architecture
        return Settings(model=folder, architecture=read(folder), candidate=candidate, **(defaults | fields))

    return make


@pytest.fixture
def generate(make_settings) -> Callable[..., Any]:
    """Serve prompts on an engine in this process; returns (tokens of each, the engine's counters)."""

    def run(folder: Path, prompts: list[list[int]], sampling: Sampling, **options: Any) -> tuple[list[list[int]], Any]:
        blocks = options.pop("blocks", None)
        settings = make_settings(folder, **options)
        if blocks is not None:
            shape = settings.architecture
            size = 2 * len(shape.layers) * settings.candidate.batching.block_size * shape.kv_heads * shape.head_dim * 4
            settings = replace(settings, kv_cache_bytes=(blocks + 1) * size)
        engine = Engine(settings)
        try:
            assert blocks is None or engine.kv_blocks == blocks
            for i, prompt in enumerate(prompts):
                engine.add(i, prompt, sampling)
            found: list[list[int]] = [[] for _ in prompts]
            while engine.busy:
                for token in engine.step():
                    found[token.id].append(token.token)
            return found, engine.snapshot()
        finally:
            engine.close()

    return run


def _add_tokenizer(folder: Path) -> None:
    """Bytes, three special tokens, and words for the ids above."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *alphabet]
    names += [f"w{i}" for i in range(len(names), SIZES["vocab_size"])]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>"
    (folder / "chat_template.jinja").write_text(template)


@pytest.fixture(scope="session")
def text_model(model_folder: Callable[[str], Path]) -> Path:
    """A tiny Llama with a tokenizer and a chat template."""
    folder = model_folder("llama-tied-biased")
    _add_tokenizer(folder)
    return folder
