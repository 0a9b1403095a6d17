"""GGUF files: the architecture from their metadata, and their tensors, dequantized, under Hugging Face names.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names as llama.cpp's converter gives them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from fwopt.engine.architecture import Architecture, from_config
from fwopt.engine.checkpoint import check_shape
from fwopt.errors import InputError, UnknownNameError

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3moe": "Qwen3MoeForCausalLM"}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def _metadata(file: Path) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    try:
        reader = gguf.GGUFReader(str(file))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: must be a GGUF file: {error}") from None
    skip = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
    values = {key: field.contents() for key, field in reader.fields.items() if key not in skip}
    return reader, values


def read_gguf_architecture(file: Path) -> Architecture:
    reader, values = _metadata(file)
    kind = str(values.get("general.architecture"))
    if kind not in _ARCHITECTURES:
        raise UnknownNameError("GGUF architecture", kind, _ARCHITECTURES, hint="the reference engine reads no other")
    names = {tensor.name for tensor in reader.tensors}

    def get(key: str, default: Any = None) -> Any:
        return values.get(f"{kind}.{key}", default)

    scaling = get("rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in names:
        raise InputError(f"{file}: scaled rotary embeddings are not read from GGUF; use the safetensors checkpoint")
    heads = get("attention.head_count")
    config = {
        "architectures": [_ARCHITECTURES[kind]],
        "hidden_size": get("embedding_length"),
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", get("embedding_length") // heads),
        "intermediate_size": get("feed_forward_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base"),
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "num_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "norm_topk_prob": kind == "qwen3moe",
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
    }
    return from_config({k: v for k, v in config.items() if v is not None}, str(file))


class GgufCheckpoint:
    """Tensors by Hugging Face name."""

    def __init__(self, file: Path) -> None:
        reader, values = _metadata(file)
        self._file = file
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._heads: dict[str, int] = {}
        if values["general.architecture"] == "llama":  # its queries and keys are stored with pairs interleaved
            heads = values["llama.attention.head_count"]
            self._heads = {"attn_q": heads, "attn_k": values.get("llama.attention.head_count_kv", heads)}

    def has(self, name: str) -> bool:
        return _stored_name(name)[0] in self._tensors

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        stored, expert = _stored_name(name)
        if stored not in self._tensors:
            raise InputError(f"{self._file}: the checkpoint has no tensor {stored} ({name})")
        source = self._tensors[stored]
        data = source.data if expert is None else source.data[expert]
        values = torch.from_numpy(np.array(gguf.quants.dequantize(data, source.tensor_type), dtype=np.float32))
        for part, heads in self._heads.items():
            if f".{part}." in stored:
                values = values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        return check_shape(str(self._file), stored, values, shape)


def _stored_name(name: str) -> tuple[str, int | None]:
    """(GGUF name, expert within it)."""
    stem, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(stem)
    if layer is None:
        return f"{_NAMES.get(stem, stem)}.{kind}", None
    expert = _EXPERT.fullmatch(layer[2])
    if expert is not None:
        return f"blk.{layer[1]}.ffn_{expert[2]}_exps.{kind}", int(expert[1])
    return f"blk.{layer[1]}.{_NAMES.get(layer[2], layer[2])}.{kind}", None
