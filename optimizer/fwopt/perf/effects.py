"""What real engines do and simulators forget, each switchable, so that what it is worth can be shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fwopt.errors import UnknownNameError
from fwopt.perf import shapes
from fwopt.perf.calibration import Calibration
from fwopt.perf.grid import StepGrid
from fwopt.perf.memory import KvCapacity
from fwopt.perf.priors import Priors, load_priors
from fwopt.spec.candidate import Candidate
from fwopt.spec.model import LayerGroup, ModelSpec

EFFECTS = {
    "async": "a step is put together while the one before it runs, so arrivals wait for both and ends are seen late",
    "host": "time per step and sequence that the GPU waits for the host",
    "api": "HTTP, tokenising and detokenising: the three below and a request's way to the engine",
    "front": "requests queue for the API server (off: it takes them side by side)",
    "streaming": "the API server's time per token sent back",
    "graphs": "padding to captured sizes; steps beyond the largest, and SGLang's prompts, launched eagerly",
    "prefill-first": "SGLang's order: prompts stop all decoding",
    "reservation": "SGLang's admission: room is kept for what running requests may still produce (off: vLLM's)",
    "chunking": "the token budget that cuts long prompts into chunks and mixes them with decodes",
    "context": "a later chunk of a prompt attends to the earlier ones",
    "kv-limit": "the finite KV cache: queueing and preemption by recompute",
    "kv-memory": "working memory beside the weights: activations, CUDA graphs, what is not torch's",
    "blocks": "KV memory in whole blocks (off: token by token)",
    "recompute": "a preempted request is computed anew (off: it comes back as it was, at no cost)",
    "eviction": "cached prefixes are forgotten when their blocks are needed (off: never)",
    "mla": "latent attention caches one vector a token (off: keys and values of every head)",
    "windows": "sliding-window layers attend to their window (off: to everything)",
    "all-reduce": "tensor-parallel communication",
    "eager-all-reduce": "all-reduce is slower outside CUDA graphs (off: as fast)",
    "routing": "uneven load of experts (off: balanced)",
    "calibration": "the fitted factors",
}
"""Name -> what is left out with `--without NAME`."""

_NOTHING = 1e-9
UNLIMITED_BLOCKS = 1 << 24
WHOLE_PROMPTS = 131_072


def parse_effects(text: str | None) -> frozenset[str]:
    """`async,host` -> the names; UnknownNameError names the nearest."""
    names = frozenset(name.strip() for name in (text or "").split(",") if name.strip())
    for name in sorted(names - EFFECTS.keys()):
        raise UnknownNameError("effect", name, EFFECTS)
    return names


def calibration_without(calibration: Calibration, off: frozenset[str]) -> Calibration:
    if "calibration" in off:
        calibration = Calibration(engine=calibration.engine)
    if "all-reduce" in off:
        calibration = calibration.model_copy(update={"factors": {**calibration.factors, "comm": _NOTHING}})
    return calibration


def priors_without(off: frozenset[str]) -> Priors:
    priors = load_priors()
    if "routing" in off:
        routing = priors.moe.model_copy(update={"routing": "balanced"})
        # tables built from a profile are shared by version
        return priors.model_copy(update={"moe": routing, "version": f"{priors.version}, balanced"})
    return priors


def model_without(model: ModelSpec, off: frozenset[str]) -> ModelSpec:
    if "windows" not in off:
        return model
    return model.model_copy(update={"layers": tuple(_without_window(group) for group in model.layers)})


def _without_window(group: LayerGroup) -> LayerGroup:
    if group.attention.kind != "gqa":
        return group
    return group.model_copy(update={"attention": group.attention.model_copy(update={"window_tokens": None})})


def grid_without(grid: StepGrid, off: frozenset[str], model: ModelSpec, tp: int) -> StepGrid:
    if "async" in off:
        grid = replace(grid, async_scheduling=False)
    if "host" in off:
        grid = replace(
            grid, step_cpu_s=0.0, sequence_cpu_s=0.0, serial_s=0.0, sequence_serial_s=0.0, prefill_step_s=0.0,
            beside_step_s=0.0,
        )  # fmt: skip
    if "front" in off:
        grid = replace(grid, request_s=grid.request_s + grid.front_s, front_s=0.0, prompt_token_s=0.0)
    if "streaming" in off:
        grid = replace(grid, chunk_s=0.0)
    if "api" in off:
        grid = replace(grid, request_s=0.0, prompt_token_s=0.0, front_s=0.0, chunk_s=0.0)
    if "graphs" in off:
        sizes = np.zeros(0, dtype=np.int64)
        grid = replace(grid, capture_sizes=sizes, token_eager_s=grid.token_graph_s, prefill_in_graphs=True)
    if "mla" in off:
        grid = replace(grid, decode_s=grid.decode_s * _expanded(model, tp))
    return grid


def _expanded(model: ModelSpec, tp: int) -> float:
    """Keys and values of all heads of one GPU over the latent vector that stands for them; 1 without latent ones."""
    latent = [group.attention for group in model.layers if group.attention.kind == "mla"]
    if not latent:
        return 1.0
    a = latent[0]
    each = a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim
    return shapes.local_heads(a.heads, tp) * each / (a.kv_lora_rank + a.qk_rope_head_dim)


def candidate_without(candidate: Candidate, off: frozenset[str]) -> Candidate:
    changed = {}
    if "chunking" in off:
        changed["max_num_batched_tokens"] = max(WHOLE_PROMPTS, candidate.batching.max_num_batched_tokens)
    if "blocks" in off:
        changed["block_size"] = 1
    return candidate.model_copy(update={"batching": candidate.batching.model_copy(update=changed)})


def blocks_without(fit: KvCapacity, off: frozenset[str], model: ModelSpec, tp: int) -> tuple[int, int]:
    """(KV blocks, blocks that each running sequence holds besides) for `candidate_without`."""
    blocks, held = float(fit.blocks), fit.sequence_blocks
    if "kv-memory" in off:
        working = fit.activation_bytes + fit.graph_bytes + fit.non_torch_bytes
        blocks += working / (fit.bytes_per_token * fit.block_size)
    if "mla" in off:
        blocks /= _expanded(model, tp)
    if "blocks" in off:
        blocks, held = blocks * fit.block_size, held * fit.block_size
    return UNLIMITED_BLOCKS if "kv-limit" in off else int(blocks), held
