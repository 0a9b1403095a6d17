"""What an engine does where nobody sets anything: the baseline that a plan has to beat."""

from __future__ import annotations

from fwopt.search.evaluators import Screen
from fwopt.search.measured import PROCESSOR_MEMORY_SHARE, engine_block_size
from fwopt.search.space import SearchSpace
from fwopt.spec.candidate import Batching, Candidate
from fwopt.spec.engine import EngineName
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec
from fwopt.targets.quantization import native_quantization

LARGE_MEMORY_BYTES = 70 * 2**30


def engine_defaults(device: DeviceSpec, max_model_len: int | None = None, engine: EngineName = "vllm") -> Batching:
    """The engine's own limits. The context length is the user's.

    vLLM 0.24 for an API server, read in its `EngineArgs`: 1,024 sequences and 8,192 tokens on GPUs of at least 70 GiB
    other than the A100, 256 and 2,048 on others, 128 and 2,048 on a processor; memory 0.92. llama.cpp: 4 slots where
    none are named, n_batch 2,048. The reference engine follows vLLM. On a processor the memory is a share: vLLM's own
    0.92 does not start once other programs hold 8 % of the machine, and starves them once it has.
    """
    large = device.memory_bytes >= LARGE_MEMORY_BYTES and "a100" not in device.name.lower()
    limits: dict[str, int | float] = {} if large else {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    if device.kind == "cpu":
        limits = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "gpu_memory_utilization": PROCESSOR_MEMORY_SHARE}
    if engine == "llamacpp":
        limits |= {"max_num_seqs": 4, "max_num_batched_tokens": 2048}
    block_size = engine_block_size(engine, processor=device.kind == "cpu")
    return Batching.model_validate({"max_model_len": max_model_len, "block_size": block_size, **limits})


def default_baseline(
    space: SearchSpace, model: ModelSpec, device: DeviceSpec, fits: Screen, engine: EngineName = "vllm"
) -> Candidate | None:
    """The engine's own batching, the checkpoint's own precision (the nearest that was measured, for GGUF files), in
    vLLM that of its KV cache, too, and the smallest tensor parallelism that starts."""
    native = native_quantization(model)
    precise = (
        native if native in space.quantizations or space.quantizations[0].kind != "gguf" else space.quantizations[0]
    )
    asked = model.checkpoint_kv_dtype if engine == "vllm" else None
    kv_dtype = asked if asked in space.kv_dtypes else None
    for layout in sorted(space.layouts, key=lambda p: p.tp):
        if layout.dp > 1 or layout.ep or not space.replica_counts(layout):
            continue
        candidate = Candidate(
            quantization=precise,
            kv_dtype=kv_dtype or "bf16",
            parallelism=layout,
            batching=space.in_blocks(engine_defaults(device, space.max_model_len, engine), kv_dtype or "bf16"),
            router=space.router[0],
            kernels=space.kernels[0],
        )
        if fits.check(candidate) is None:
            return candidate
    return None
