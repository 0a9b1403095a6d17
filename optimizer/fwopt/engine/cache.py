"""How many KV blocks there are."""

from __future__ import annotations

from pathlib import Path

import torch

from fwopt.engine.architecture import Architecture
from fwopt.engine.linear import FP8
from fwopt.engine.settings import Settings
from fwopt.errors import InputError

CPU_SHARE = 0.25
"""Of the memory that is free on the CPU when nothing is said."""


def block_bytes(shape: Architecture, kv_heads: int, block_size: int, dtype: torch.dtype) -> int:
    """Of one block in all layers, on one rank."""
    return len(shape.layers) * block_size * 2 * kv_heads * shape.head_dim * dtype.itemsize


def cache_dtype(settings: Settings, dtype: torch.dtype) -> torch.dtype:
    return FP8 if settings.candidate.kv_dtype == "fp8" else dtype


def count_blocks(settings: Settings, bytes_per_block: int, available: int) -> int:
    """Blocks to allocate: what fits, but no more than all sequences can use. Refuses what cannot hold one request."""
    batching = settings.candidate.batching
    longest = -(-settings.max_model_len // batching.block_size)
    fit = available // bytes_per_block - 1  # one more block takes the padding of captured batches
    if fit < longest:
        raise InputError(
            f"the KV cache must hold one request of max_model_len={settings.max_model_len} "
            f"({(longest + 1) * bytes_per_block / 2**30:.2f} GiB), got {available / 2**30:.2f} GiB; "
            "lower max_model_len or give it more memory"
        )
    return fit


def available_bytes(settings: Settings, device: torch.device) -> int:
    """For the KV cache on this rank, after the weights are loaded and a full step has run once."""
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
        used = total - free + peak
        return int(total * settings.candidate.batching.gpu_memory_utilization) - used
    return int(CPU_SHARE * _free_memory_bytes()) // settings.candidate.parallelism.tp


def _free_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise InputError("/proc/meminfo does not say how much memory is free; give --kv-cache-gib")
