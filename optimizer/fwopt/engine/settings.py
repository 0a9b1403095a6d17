"""How one engine is to run: everything its processes need to know."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fwopt.engine.architecture import Architecture
from fwopt.errors import InputError
from fwopt.spec.candidate import Candidate
from fwopt_kernels.choice import Choice

LoadFormat = Literal["auto", "dummy"]
DeviceKind = Literal["cpu", "cuda"]
DType = Literal["bf16", "fp32"]
Operators = Literal["torch", "triton"]


@dataclass(frozen=True, slots=True)
class Settings:
    model: Path
    """A folder in Hugging Face's layout, or a GGUF file."""
    architecture: Architecture
    candidate: Candidate
    max_model_len: int
    """Longest prompt + output."""
    load_format: LoadFormat = "auto"
    device: DeviceKind = "cpu"
    dtype: DType = "bf16"
    """Of activations, and of weights that are not quantized."""
    operators: Operators = "torch"
    """triton: `fwopt_kernels` where it has the operator, torch for the rest."""
    choices: tuple[Choice, ...] = ()
    """Tuned variants of those kernels; defaults for the rest."""
    threads: int = 1
    """Of torch, on the CPU, in each rank."""
    kv_cache_bytes: int | None = None
    """Per rank. None: on a GPU what `gpu_memory_utilization` leaves, on a CPU a share of the memory that is free."""
    capture_sizes: tuple[int, ...] = ()
    """Decode batches replayed from CUDA graphs, ascending; empty: none."""
    records: Path | None = None
    """Where the record of every step goes."""


def check(settings: Settings) -> None:
    """What this engine cannot do is refused before anything is loaded."""
    p, b = settings.candidate.parallelism, settings.candidate.batching
    if p.pp > 1 or p.dp > 1 or p.ep:
        raise InputError(
            f"the reference engine shards by tensor parallelism only, got pp={p.pp} dp={p.dp} ep={str(p.ep).lower()}"
        )
    if b.max_num_seqs > b.max_num_batched_tokens:
        raise InputError(
            f"max_num_batched_tokens must be at least max_num_seqs (every running sequence needs a token), "
            f"got {b.max_num_batched_tokens} < {b.max_num_seqs}"
        )
    if not b.chunked_prefill and b.max_num_batched_tokens < settings.max_model_len:
        raise InputError(
            f"without chunked prefill max_num_batched_tokens must be at least max_model_len, "
            f"got {b.max_num_batched_tokens} < {settings.max_model_len}"
        )
    if settings.operators == "triton" and (reason := without_triton(settings.dtype)):
        raise InputError(f"operators triton: {reason}; use --operators torch")
    if settings.max_model_len > settings.architecture.max_position:
        raise InputError(
            f"max_model_len must be at most the model's {settings.architecture.max_position} positions, "
            f"got {settings.max_model_len}"
        )


def without_triton(dtype: DType) -> str | None:
    """Why `fwopt_kernels` cannot serve in it, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if dtype != "bf16":
        return f"the kernels compute in bf16, got {dtype}"
    return None
