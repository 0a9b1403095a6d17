"""Which entries vLLM takes, asked of vLLM's own functions; runs in vLLM's Python.

vLLM builds a file's name from the device's. Where it sees another device than the files are for, or none, its platform
is told that name, in that process alone; everything after it is vLLM's. Present in vLLM 0.24.0 and 0.32.0 alike.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """Experts of one layer on one GPU, and the numbers of tokens to ask for."""

    experts: int
    intermediate: int
    hidden: int
    top_k: int
    fp8: bool
    block: tuple[int, int] | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    device_name: str
    """As its driver reports it."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Pick:
    """What vLLM does for one layer."""

    file: str
    """That it looks for."""
    entries: tuple[dict[str, int], ...]
    """Its choice for each number of tokens."""


@dataclass(frozen=True)
class Picks:
    version: str
    device_name: str | None
    """That vLLM sees by itself; None: it sees no device."""
    layers: tuple[Pick, ...]


def look_up(asked: Question) -> Picks:
    """VLLM_TUNED_CONFIG_FOLDER is in this process's environment, as it is in a server's."""
    import vllm

    own = _device(asked.device_name)
    return Picks(vllm.__version__, own, tuple(_pick(layer) for layer in asked.layers))


def _device(name: str) -> str | None:
    from vllm.platforms import current_platform

    try:
        own: str | None = current_platform.get_device_name()
    except Exception:  # as many kinds as platforms; each means that there is no such device
        own = None
    if own != name:
        type(current_platform).get_device_name = classmethod(lambda cls, device_id=0: name)
    return own


def _pick(layer: Layer) -> Pick:
    import torch
    from vllm.model_executor.layers.fused_moe.config import _get_config_dtype_str
    from vllm.model_executor.layers.fused_moe.fused_moe import get_config_file_name, try_get_optimal_moe_config

    dtype = _get_config_dtype_str(torch.bfloat16, use_fp8_w8a8=layer.fp8)
    block = list(layer.block) if layer.block else None
    w1 = (layer.experts, 2 * layer.intermediate, layer.hidden)
    w2 = (layer.experts, layer.hidden, layer.intermediate)
    return Pick(
        get_config_file_name(layer.experts, layer.intermediate, dtype, block),
        tuple(
            dict(try_get_optimal_moe_config(w1, w2, layer.top_k, dtype, tokens, block_shape=block))
            for tokens in layer.tokens
        ),
    )
