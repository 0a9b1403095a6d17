"""KV cache of engines that do not size it from a GPU: vLLM and the reference engine on a processor, llama.cpp anywhere.

vLLM on a processor (read in 0.32, `v1/worker/cpu_worker.py`): KV cache = ceil(RAM x gpu_memory_utilization) - resident
size of the worker; `VLLM_CPU_KVCACHE_SPACE` (GiB) or `--kv-cache-memory-bytes` replace it. Blocks are 128 tokens unless
set (`platforms/cpu.py`). llama.cpp allocates the whole context of every slot at start: a request waits for a free slot,
never for memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwopt.spec.candidate import Batching, Candidate
from fwopt.spec.hardware import DeviceSpec
from fwopt.targets.weights import ceil_div

RUNTIME_BYTES = round(1.0 * 2**30)
"""Python, torch and buffers of a worker beside its weights; vLLM 0.32 with a 135M model reported 1.1 GiB in all."""
LLAMACPP_RUNTIME_BYTES = round(0.25 * 2**30)
"""llama-server's own and its compute buffers (n_ubatch 512)."""


@dataclass(frozen=True, slots=True)
class HostFit:
    """Blocks, or what is missing."""

    blocks: int
    pool_bytes: int
    missing: tuple[str, int, int] | None = None
    """(reason, need, have) in bytes"""


def processor_fit(
    device: DeviceSpec, batching: Batching, weights: int, bytes_per_token: int, longest: int, state_bytes: int
) -> HostFit:
    """vLLM and the reference engine: a share of the machine's memory, less what the worker holds. `state_bytes`: what
    a sequence holds however long it is."""
    requested = int(device.memory_bytes * batching.gpu_memory_utilization)
    pool = requested - weights - RUNTIME_BYTES
    need = ceil_div(longest, batching.block_size) * batching.block_size * bytes_per_token + state_bytes
    if pool <= need:
        have = max(pool, 0)
        return HostFit(0, have, ("the memory set aside cannot hold the weights and one sequence", need, have))
    return HostFit(pool // (batching.block_size * bytes_per_token) - 1, pool)


def slots_fit(device: DeviceSpec, candidate: Candidate, weights: int, bytes_per_token: int, longest: int) -> HostFit:
    """llama.cpp: `max_num_seqs` slots of `longest` tokens each. With a prefix cache, prompts of idle slots move to as
    much of the host's memory again (`CACHE_RAM`)."""
    batching = candidate.batching
    blocks = batching.max_num_seqs * ceil_div(longest, batching.block_size)
    pool = batching.max_num_seqs * longest * bytes_per_token
    parked = pool if batching.prefix_caching and device.kind == "cpu" else 0
    need, have = weights + pool + parked + LLAMACPP_RUNTIME_BYTES, device.memory_bytes
    if need > have:
        return HostFit(0, pool, ("weights and the context of every slot exceed the memory", need, have))
    return HostFit(blocks, pool)
