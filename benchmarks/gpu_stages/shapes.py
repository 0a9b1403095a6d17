"""The shapes that are timed: two models, a few steps."""

from __future__ import annotations

from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-8B": {
        "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "inter": 12288,
        "linears": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)},
    },
    "Qwen3-30B-A3B": {
        "hidden": 2048, "heads": 32, "kv_heads": 4, "head_dim": 128, "experts": 128, "top_k": 8, "expert_inter": 768,
        "linears": {"qkv": (5120, 2048), "o": (2048, 4096)},
    },
}  # fmt: skip
"""From the published config.json of each, one GPU; linears are (n, k) as vLLM fuses them."""
DECODE, LARGE = (1, 2, 4, 8, 16), (64, 256, 1024, 4096)
FEW = (1, 16, 256, 4096)
"""Rows of operators that stream them, and of adapters."""
ATTENTION = ((1, 1024), (32, 1024), (32, 8192), (128, 2048))
"""(sequences, tokens of context each)"""
PROMPTS = ((1, 512, 512), (1, 2048, 2048), (1, 8192, 8192), (4, 2048, 2048), (32, 64, 64), (1, 2048, 32768),
           (1, 64, 32768), (8, 16, 8192))  # fmt: skip
"""(chunks, tokens each, tokens of context each, the chunk's own included)"""
ADAPTERS = ((1, 16), (8, 16), (8, 64))
"""(adapters of a batch, their rank)"""
SAMPLED, VOCABULARY = (1, 16, 256), 151_936
"""Tokens drawn at once, of Qwen3's."""
