"""Roofline lower bounds: what no engine on this device could beat, whatever its kernels.

Used to reject a candidate before it is simulated. Weights are read once a step, only as many experts as a single token
needs, the KV cache once a decode step; arithmetic runs at the vendor's dense peak; nothing is launched, reduced or
scheduled. So a bound is never above the times of the cost model (`tests/perf/test_bound.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fwopt.perf import roofline, shapes
from fwopt.perf.grid import Floats
from fwopt.spec.candidate import Candidate
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import GroupedQueryAttention, LatentAttention, LayerGroup, LinearAttention, ModelSpec
from fwopt.targets.weights import latent_up
from fwopt.workload.columns import Workload


@dataclass(frozen=True, slots=True)
class StepBound:
    """Least seconds of the parts of one engine step; the parts add up as in `StepGrid`."""

    weights_s: float
    """Reading every weight that even one token needs, LM head apart."""
    token_flops_s: float
    """Arithmetic of one token, LM head and attention apart."""
    head_weights_s: float
    head_flops_s: float
    cache_s: tuple[tuple[float, int], ...]
    """(seconds to read one cached token of one sequence, window or 0) by kind of layer."""
    pair_s: tuple[tuple[float, int], ...]
    """(seconds of one query-key pair, window or 0) by kind of layer."""

    @classmethod
    def of(cls, model: ModelSpec, device: DeviceSpec, candidate: Candidate) -> StepBound:
        """Bounds of one GPU of `candidate`; every GPU of a replica works in step."""
        bandwidth = device.bandwidth_bytes_per_s
        layers = [(group, *_layer(model, group, device, candidate)) for group in model.layers]
        columns = shapes.vocabulary(model, candidate.parallelism.tp)
        attention = [_attention(group, device, candidate) for group in model.layers]
        return cls(
            weights_s=sum(group.count * moved for group, moved, _ in layers) / bandwidth,
            token_flops_s=sum(group.count * flops_s for group, _, flops_s in layers),
            head_weights_s=columns * model.hidden_size * 2.0 / bandwidth,
            head_flops_s=2.0 * columns * model.hidden_size / device.bf16_flops,
            cache_s=tuple((g.count * cache, w) for g, (cache, _, w) in zip(model.layers, attention, strict=True)),
            pair_s=tuple((g.count * pair, w) for g, (_, pair, w) in zip(model.layers, attention, strict=True)),
        )

    def token_s(self, tokens: Floats | float) -> Floats:
        """Everything that depends on the step's tokens only."""
        return np.maximum(self.weights_s, np.asarray(tokens) * self.token_flops_s)

    def decode_s(self, batch: Floats | float, context: Floats | float) -> Floats:
        """Attention of `batch` sequences over `context` cached tokens each."""
        seen = np.asarray(context, dtype=np.float64)
        each = sum(np.minimum(seen, window or np.inf) * cache for cache, window in self.cache_s)
        return np.asarray(batch * each)

    def prefill_s(self, length: Floats | float, cached: Floats | float = 0.0) -> Floats:
        """Attention of a prompt of which the first `cached` tokens are in the cache already."""
        end, start = np.asarray(length, dtype=np.float64), np.asarray(cached, dtype=np.float64)
        pairs = (pair * (roofline.attended(end, w) - roofline.attended(start, w)) for pair, w in self.pair_s)
        return np.asarray(sum(pairs))

    def sample_s(self, sequences: Floats | float) -> Floats:
        """LM head for that many sequences."""
        return np.maximum(self.head_weights_s, np.asarray(sequences) * self.head_flops_s)

    def tpot_s(self, context: float) -> float:
        """Least time per output token of a request that runs alone, at its shortest context."""
        return float(self.token_s(1) + self.decode_s(1, context) + self.sample_s(1))

    def ttft_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        """Least time to the first token of a prompt on an idle server."""
        new = max(prompt_tokens - cached_tokens, 1.0)
        return float(self.token_s(new) + self.prefill_s(prompt_tokens, prompt_tokens - new) + self.sample_s(1))


def _layer(model: ModelSpec, group: LayerGroup, device: DeviceSpec, candidate: Candidate) -> tuple[float, float]:
    """(weight bytes a single token needs, seconds of arithmetic per token) of one layer on one GPU."""
    layer = shapes.layer(model, group, candidate.quantization, candidate.parallelism)
    products = list(layer.products)
    if isinstance(group.attention, LatentAttention):
        up = latent_up(group.attention, shapes.local_heads(group.attention.heads, candidate.parallelism.tp))
        products.append(shapes.Product(shapes.scheme(candidate.quantization).attention, up.n, up.k))
    moved = sum(p.n * p.k * roofline.WEIGHT_BYTES[p.dtype] for p in products)
    flops_s = sum(2.0 * p.n * p.k / roofline.peak_flops(device, p.dtype) for p in products)
    if layer.experts:
        e = layer.experts
        one = 3.0 * e.hidden * e.inter / e.tp
        moved += e.topk / e.ep * one * roofline.WEIGHT_BYTES[e.dtype]
        flops_s += 2.0 * e.topk / e.ep * one * e.sharers / roofline.peak_flops(device, e.dtype)
    return moved, flops_s


def _attention(group: LayerGroup, device: DeviceSpec, candidate: Candidate) -> tuple[float, float, int]:
    """(seconds to read one cached token, seconds per query-key pair, window) of one layer on one GPU."""
    a, tp = group.attention, candidate.parallelism.tp
    if isinstance(a, LinearAttention):
        return 0.0, 0.0, 0
    heads = shapes.local_heads(a.heads, tp)
    kv_bytes = roofline.KV_BYTES[candidate.kv_dtype]
    peak = device.bf16_flops
    if candidate.kv_dtype == "fp8":
        peak = max(peak, device.fp8_flops or 0.0)
    if isinstance(a, GroupedQueryAttention):
        cached = shapes.local_kv_heads(a.kv_heads, tp) * a.head_dim * (1 if a.shared_kv else 2)
        pair_flops, window = 4.0 * heads * a.head_dim, a.window_tokens or 0
    else:
        cached = a.kv_lora_rank + a.qk_rope_head_dim
        pair_flops, window = 2.0 * heads * (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim), 0
    return cached * kv_bytes / device.bandwidth_bytes_per_s, pair_flops / peak, window


def request_seconds(bound: StepBound, workload: Workload, candidate: Candidate) -> Floats:
    """(n,) least seconds of one replica's time that each request takes, whoever it shares steps with.

    Arithmetic or, with every step as full as the limits allow, its share of reading the weights, whichever is larger
    in total; attention on top. With prefix caching, blocks that any earlier request had are free.
    """
    prompt, output = workload.prompt_tokens.astype(np.float64), workload.output_tokens.astype(np.float64)
    cached = np.zeros(len(workload))
    if candidate.batching.prefix_caching and workload.block_tokens:
        cached = np.minimum(_repeated_blocks(workload) * float(workload.block_tokens), np.maximum(prompt - 1, 0))
    arithmetic = (prompt - cached + output) * bound.token_flops_s + output * bound.head_flops_s
    share = np.maximum(output - 1, 0) * (bound.weights_s + bound.head_weights_s) / candidate.batching.max_num_seqs
    steps = np.where(arithmetic.sum() >= share.sum(), arithmetic, share)
    return np.asarray(steps + bound.prefill_s(prompt, cached) + output * bound.decode_s(1.0, prompt))


def minimum_replicas(
    bound: StepBound, workload: Workload, candidate: Candidate, drain_s: float, served_share: float = 1.0
) -> float:
    """Replicas below which the workload cannot be done in time: least work over the time there is.

    `drain_s` is how long after the last arrival a request may still run, and `served_share` the share of requests that
    must be done by then; the dearest others are left out.
    """
    seconds = np.sort(request_seconds(bound, workload, candidate) / candidate.parallelism.dp)
    needed = seconds[: int(np.ceil(len(seconds) * served_share))].sum()
    return float(needed / max(workload.duration_s + drain_s, 1e-9))


def _repeated_blocks(workload: Workload) -> Floats:
    """(n,) prefix blocks of each request that an earlier one had."""
    repeated = np.ones(len(workload.block_ids), dtype=np.bool_)
    _, first = np.unique(workload.block_ids, return_index=True)
    repeated[first] = False
    running = np.concatenate([[0], np.cumsum(repeated)]).astype(np.float64)
    return np.asarray(running[workload.block_offsets[1:]] - running[workload.block_offsets[:-1]])
