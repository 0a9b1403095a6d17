"""GPU memory as vLLM accounts for it at start-up, and so how many KV-cache blocks a deployment gets.

vLLM (read in 0.32; the same since 0.21) computes

    KV cache = total x gpu_memory_utilization - weights - non-torch - peak of a dummy forward pass - CUDA graphs

where total is what CUDA reports (`DeviceSpec.memory_bytes`) and the dummy pass runs `max_num_batched_tokens` tokens
and samples `max_num_seqs` sequences. The CUDA context and NCCL come before the accounting starts: they are not
subtracted, but what is requested must still be free after them, or vLLM refuses to start.

Weights and bytes per KV token follow from shapes. The other terms are approximations, stated where they are made and
held against start-up logs of real servers in tests/perf/test_memory.py: dense models' KV caches come out within 2 %,
gpt-oss within 0.75 GiB. Vision and audio towers of multimodal models are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwopt.perf.capture import capture_sizes
from fwopt.perf.host_memory import processor_fit, slots_fit
from fwopt.perf.kv_layout import KvLayout, engine_layout
from fwopt.perf.priors import load_overheads
from fwopt.spec.candidate import Batching, Bf16, Candidate, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import LayerGroup, ModelSpec
from fwopt.spec.outcome import Rejected
from fwopt.targets.parallel import valid_parallelism as valid_parallelism
from fwopt.targets.weights import attention_linears, ceil_div, dense_linears, expert_shard, round_up
from fwopt.targets.weights import weight_bytes as weight_bytes

_GIB = 2**30
_BF16 = 2

LOGIT_BYTES = 14
"""Bytes a logit while sampling: bf16 logits, their fp32 copy, fp32 probabilities and as much random noise."""
GRAPH_BYTES_PER_LAYER = 256 * 2**10
"""One CUDA graph's share of one layer; published start-up logs spread from 0.09 to 0.4 MiB."""
NON_TORCH_BYTES = {"one": round(0.25 * _GIB), "many": round(1.4 * _GIB)}
"""Allocations outside torch after the accounting starts. Logs: 0.07-0.26 GiB on one GPU; 0.95-1.74 GiB under
tensor or expert parallelism (all-reduce and symmetric-memory buffers)."""
CONTEXT_BYTES = {"one": round(0.6 * _GIB), "many": round(2.2 * _GIB)}
"""CUDA context and NCCL, in use before. Logs: 0.41-0.59 GiB on one or two GPUs, 2.16 GiB on eight H200."""
_MLA_WORKSPACE_TOKENS = 65_536
SHORT_WINDOW = 8
"""A window is short when the longest sequence is at least so many windows."""
_IN_FLIGHT_STEPS = 2
"""Asynchronous scheduling: tokens of two steps may hold blocks outside a sliding window."""


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """The KV cache of one scheduler (one data-parallel rank of one replica); bytes are per GPU."""

    blocks: int
    """Usable blocks; vLLM's permanently reserved null block is already taken off."""
    block_size: int
    """Tokens a block, as the engine takes them: more than asked for where vLLM makes a block hold a state."""
    bytes_per_token: int
    """What one more token of a long sequence adds. Sliding-window layers count only when all layers are charged
    for every token (see `_blocks`)."""
    sequence_blocks: int
    """Blocks that each running sequence holds besides those for its tokens: the windows of sliding layers, the states
    of linear attention."""
    weight_bytes_per_gpu: int
    activation_bytes: int
    graph_bytes: int
    non_torch_bytes: int
    kv_bytes_per_gpu: int

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_size

    def max_concurrency(self, max_len: int) -> float:
        """Sequences of `max_len` tokens that fit at once."""
        return self.blocks / (ceil_div(max_len, self.block_size) + self.sequence_blocks)


def kv_capacity(
    model: ModelSpec, device: DeviceSpec, candidate: Candidate, engine: EngineSpec, draft: ModelSpec | None = None
) -> KvCapacity | Rejected:
    """Blocks that the engine would allocate, or why it would not start. `draft`: a model that guesses ahead, in bf16;
    its weights and its keys and values lie beside the model's own.

    SGLang's `mem_fraction_static` (here `gpu_memory_utilization`) is a share of what is free once CUDA and NCCL are up,
    and covers weights and KV cache alone: activations and CUDA graphs live in the rest (`profile_max_num_token` in its
    model_executor, 0.5.8).
    """
    parallelism, batching = candidate.parallelism, candidate.batching
    broken = valid_parallelism(model, candidate.quantization, parallelism)
    if broken is not None:
        return Rejected(candidate_id=candidate.id, rung="memory", reason=broken)
    if keeps_states(model, engine) and not batching.chunked_prefill and batching.prefix_caching:
        reason = "vLLM caches prefixes of linear attention only with chunked prefill"
        return Rejected(candidate_id=candidate.id, rung="memory", reason=reason)
    if engine.name == "llamacpp" or device.kind == "cpu":
        return _host_capacity(model, device, candidate, engine, draft)
    many = "many" if parallelism.gpus_per_replica > 1 else "one"
    vllm = engine.name == "vllm"
    free = device.memory_bytes - CONTEXT_BYTES[many]
    requested = int((device.memory_bytes if vllm else free) * batching.gpu_memory_utilization)
    if requested > free:
        return _too_big(
            candidate, "gpu_memory_utilization leaves no room for the CUDA context and NCCL", requested, free
        )
    weights = _weights(model, candidate, draft)
    activation = activation_bytes(model, candidate) if vllm else 0
    graphs = graph_bytes(model, candidate, engine) if vllm else 0
    non_torch = NON_TORCH_BYTES[many] if vllm else 0
    used = weights + activation + graphs + non_torch
    layout, batching = engine_layout(model, draft, candidate, engine.name, processor=False)
    pool = requested - used
    least = used + batching.block_size * (layout.full + layout.sliding)
    if pool <= 0:
        return _too_big(candidate, "weights and working memory exceed the GPU", least, requested)
    longest = batching.max_model_len or model.max_context_tokens
    need = sequence_bytes(layout, batching, longest)
    blocks, bytes_per_token, sequence_blocks = _blocks(layout, batching, pool, longest)
    have = pool - batching.block_size * bytes_per_token
    if need > have:
        return _too_big(candidate, "the KV cache cannot hold one sequence of max_model_len", need, have)
    return KvCapacity(
        blocks=blocks - 1,
        block_size=batching.block_size,
        bytes_per_token=bytes_per_token,
        sequence_blocks=sequence_blocks,
        weight_bytes_per_gpu=weights,
        activation_bytes=activation,
        graph_bytes=graphs,
        non_torch_bytes=non_torch,
        kv_bytes_per_gpu=pool,
    )


def keeps_states(model: ModelSpec, engine: EngineSpec) -> bool:
    """Whether the engine's prefix cache must hold states of linear attention."""
    return engine.name == "vllm" and any(group.attention.kind == "gdn" for group in model.layers)


def _weights(model: ModelSpec, candidate: Candidate, draft: ModelSpec | None) -> int:
    """Of both models on one GPU; vLLM spreads the draft model as the target."""
    own = weight_bytes(model, candidate.quantization, candidate.parallelism)
    return own + (weight_bytes(draft, Bf16(), candidate.parallelism) if draft is not None else 0)


def _host_capacity(
    model: ModelSpec, device: DeviceSpec, candidate: Candidate, engine: EngineSpec, draft: ModelSpec | None
) -> KvCapacity | Rejected:
    """Engines that do not size their KV cache from a GPU. Sliding layers are charged for every token."""
    weights = _weights(model, candidate, draft)
    layout, batching = engine_layout(model, draft, candidate, engine.name, processor=device.kind == "cpu")
    bytes_per_token = layout.full + layout.sliding
    longest = batching.max_model_len or model.max_context_tokens
    if engine.name == "llamacpp":
        found = slots_fit(device, candidate, weights, bytes_per_token, longest)
    else:
        found = processor_fit(device, batching, weights, bytes_per_token, longest, layout.most_state)
    if found.missing is not None:
        return _too_big(candidate, *found.missing)
    return KvCapacity(
        blocks=found.blocks,
        block_size=batching.block_size,
        bytes_per_token=bytes_per_token,
        sequence_blocks=ceil_div(layout.state, batching.block_size * max(bytes_per_token, 1)),
        weight_bytes_per_gpu=weights,
        activation_bytes=0,
        graph_bytes=0,
        non_torch_bytes=0,
        kv_bytes_per_gpu=found.pool_bytes,
    )


def _too_big(candidate: Candidate, reason: str, need: int, have: int) -> Rejected:
    return Rejected(candidate_id=candidate.id, rung="memory", reason=reason, need=need, have=have, unit="bytes")


def sequence_bytes(layout: KvLayout, batching: Batching, tokens: int) -> int:
    """Most KV bytes that one sequence of `tokens` holds; vLLM refuses to start when max_model_len does not fit."""
    block = batching.block_size
    in_flight = layout.window_tokens - 1 + _IN_FLIGHT_STEPS * batching.max_num_batched_tokens
    windowed = (ceil_div(min(tokens, in_flight), block) + 1) * block if layout.sliding else 0
    return layout.full * round_up(tokens, block) + layout.sliding * windowed + layout.most_state


def _blocks(layout: KvLayout, batching: Batching, pool: int, longest: int) -> tuple[int, int, int]:
    """(blocks, bytes per token, further blocks that each running sequence holds).

    In vLLM sliding layers share the pool and give back blocks that leave the window. So blocks are counted in full
    layers only, and a running sequence holds a whole window of the sliding ones besides (too much for a sequence
    shorter than the window), two steps' tokens set aside. The states of linear attention come out of the same pool.
    Where the window is no small part of the longest sequence,
    every layer is charged for every token instead.
    """
    block, everything = batching.block_size, layout.full + layout.sliding
    state = ceil_div(layout.state, block * everything)
    if not (layout.full and layout.sliding) or layout.window_tokens * SHORT_WINDOW > longest:
        return pool // (block * everything), everything, state
    window = (ceil_div(layout.window_tokens, block) + 1) * block
    aside = _IN_FLIGHT_STEPS * batching.max_num_batched_tokens * layout.sliding
    held = ceil_div(window * layout.sliding + layout.state, block * layout.full)
    return max(0, pool - aside) // (block * layout.full), layout.full, held


def activation_bytes(model: ModelSpec, candidate: Candidate) -> int:
    """Peak of the dummy pass: the forward over the token budget, or sampling for every sequence, whichever is larger.

    Forward: four hidden-size tensors and the widest layer's intermediates, bf16. Sampling sees the whole vocabulary
    on every GPU (logits are gathered).
    """
    tokens, hidden = candidate.batching.max_num_batched_tokens, model.hidden_size
    widest = max(_layer_bytes_per_token(g, hidden, candidate.parallelism) for g in model.layers)
    forward = tokens * (4 * hidden * _BF16 + widest) + _mla_workspace(model, candidate)
    rows = min(candidate.batching.max_num_seqs, tokens)
    sampling = rows * model.vocab_size * LOGIT_BYTES + tokens * hidden * _BF16
    return max(forward, sampling)


def _layer_bytes_per_token(group: LayerGroup, hidden: int, parallelism: Parallelism) -> int:
    """Widest set of intermediates alive at once: attention's projections, or an MLP's gate, up and product."""
    tp = parallelism.tp
    attention = sum(m.n for m in attention_linears(group.attention, hidden, tp) if m.n != hidden)
    mlp = sum(m.n if m.n != hidden else m.k for m in dense_linears(group.mlp, hidden, tp))
    if group.mlp.kind == "moe":
        width = expert_shard(group.mlp, parallelism)[1]
        mlp += group.mlp.experts_per_token * (max(2 * width, hidden) + width) * parallelism.dp
    return max(attention, mlp) * _BF16


def _mla_workspace(model: ModelSpec, candidate: Candidate) -> int:
    """Latent attention expands cached context in chunks of at most 64k tokens during prefill."""
    attention = model.layers[0].attention
    if attention.kind != "mla":
        return 0
    longest = candidate.batching.max_model_len or model.max_context_tokens
    rows = 4 * candidate.batching.max_num_seqs * candidate.batching.block_size
    tokens = min(max(8 * longest, rows), _MLA_WORKSPACE_TOKENS)
    heads = ceil_div(attention.heads, candidate.parallelism.tp)
    expanded = heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    return tokens * (attention.kv_lora_rank + attention.qk_rope_head_dim + expanded) * _BF16


def graph_bytes(model: ModelSpec, candidate: Candidate, engine: EngineSpec) -> int:
    """CUDA graphs: one piecewise graph a captured size, and one full graph a captured decode batch.

    vLLM subtracts its own estimate of them since 0.21; before, they came out of the memory left over.
    """
    if _version(engine.version) < (0, 21):
        return 0
    most = load_overheads(engine.name).max_captured_tokens
    sizes = capture_sizes(engine.name, candidate.batching, most, candidate.tokens_per_decode)
    graphs = len(sizes) + int((sizes <= candidate.batching.max_num_seqs).sum())
    return graphs * ceil_div(model.layer_count, candidate.parallelism.pp) * GRAPH_BYTES_PER_LAYER


def _version(text: str) -> tuple[int, ...]:
    """Leading numbers of a version; an unreadable one counts as current."""
    numbers = []
    for part in text.split(".")[:2]:
        if not part.isdigit():
            return (10**6,)
        numbers.append(int(part))
    return tuple(numbers)
