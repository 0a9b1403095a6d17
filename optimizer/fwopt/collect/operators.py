"""Operators of a model, timed with torch on the device at hand, as rows of the profile store's operator tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fwopt.collect.probes import Row
from fwopt.collect.timing import Timing, copies, time_calls
from fwopt.errors import UnmeasuredError
from fwopt.perf import shapes
from fwopt.spec.candidate import Bf16, Parallelism
from fwopt.spec.model import GroupedQueryAttention, LayerGroup, ModelSpec

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 4, 16, 64)
CONTEXTS = (64, 256, 1024, 4096, 16384)
LENGTHS = (16, 64, 256, 512, 1024, 2048, 4096, 8192)
MOST_FLOPS = {"cpu": 2e11, "cuda": 1e14}
"""Of one call: larger ones would take seconds, and time grows with work there."""
MOST_CACHE_BYTES = {"cpu": 2**30, "cuda": 2**33}
_BF16 = 2


@dataclass(frozen=True, slots=True)
class Task:
    """One operator at one shape."""

    table: str
    shape: Row
    """Key columns of the row."""
    build: Callable[[], list[Callable[[], Any]]]
    """Allocates, and gives the calls to time: equal work on different memory."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Times tasks on one torch device."""

    device: str
    """cpu or cuda"""
    variant: str

    def row(self, task: Task) -> Row:
        import torch

        with torch.inference_mode():
            timing: Timing = time_calls(task.build(), self.device)
        return {**task.shape, "variant": self.variant, **timing.columns}


def torch_variant(device: str) -> str:
    """Library and threads, as the rows name them."""
    import torch

    if device == "cuda":
        return f"torch {torch.__version__} cuda {torch.version.cuda}"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def tasks(model: ModelSpec, device: str, tp: int = 1, *, quick: bool = False) -> Iterator[Task]:
    """Every product and attention of the model on one of `tp` devices."""
    products = {(model.vocab_size // tp, model.hidden_size)}
    for group in model.layers:
        layer = shapes.layer(model, group, Bf16(), Parallelism(tp=tp))
        if layer.experts is not None or not isinstance(group.attention, GroupedQueryAttention):
            raise UnmeasuredError(
                f"{model.name}: operators of experts and of latent or linear attention are not timed; "
                "measure its steps with `fwopt profile --engine …`"
            )
        products |= {(p.n, p.k) for p in layer.products}
    rows = ROWS[::3] if quick else ROWS
    for n, k in sorted(products):
        yield from (product(m, n, k, device) for m in rows if 2.0 * m * n * k <= MOST_FLOPS[device])
    for attention in {g.attention for g in model.layers if isinstance(g.attention, GroupedQueryAttention)}:
        yield from _attention(attention, model.max_context_tokens, device, tp, quick)


def product(m: int, n: int, k: int, device: str) -> Task:
    def build() -> list[Callable[[], Any]]:
        import torch

        x = torch.randn(m, k, dtype=torch.bfloat16, device=device)
        weights = [torch.randn(n, k, dtype=torch.bfloat16, device=device) for _ in range(copies(n * k * _BF16, device))]
        return [partial(torch.nn.functional.linear, x, w) for w in weights]

    return Task("gemm", {"dtype": "bf16", "n": n, "k": k, "m": m}, build)


def _attention(a: GroupedQueryAttention, longest: int, device: str, tp: int, quick: bool) -> Iterator[Task]:
    heads, kv_heads = shapes.local_heads(a.heads, tp), shapes.local_kv_heads(a.kv_heads, tp)
    shape: Row = {"kv_dtype": "bf16", "heads": heads, "kv_heads": kv_heads, "head_dim": a.head_dim, "window": 0}
    token_bytes = 2 * kv_heads * a.head_dim * _BF16
    for batch in BATCHES[::2] if quick else BATCHES:
        for context in CONTEXTS:
            if context <= longest and batch * context * token_bytes <= MOST_CACHE_BYTES[device]:
                yield _decode(shape, batch, context, device)
    for length in LENGTHS[::2] if quick else LENGTHS:
        if length <= longest and 2.0 * length**2 * heads * a.head_dim <= MOST_FLOPS[device]:
            yield _prefill(shape, length, device)


def _decode(shape: Row, batch: int, context: int, device: str) -> Task:
    return Task(
        "decode_attention",
        {**shape, "batch": batch, "context": context},
        partial(_attend, shape, batch, 1, context, device),
    )


def _prefill(shape: Row, length: int, device: str) -> Task:
    return Task(
        "prefill_attention",
        {"dtype": "bf16", **shape, "batch": 1, "length": length},
        partial(_attend, shape, 1, length, length, device),
    )


def _attend(shape: Row, batch: int, queries: int, context: int, device: str) -> list[Callable[[], Any]]:
    """Attention of `queries` new tokens a sequence over `context` cached ones, causal where there are several."""
    import torch

    heads, kv_heads, size = (int(shape[name]) for name in ("heads", "kv_heads", "head_dim"))
    make = partial(torch.randn, dtype=torch.bfloat16, device=device)
    count = copies(2 * batch * kv_heads * context * size * _BF16, device)
    q = make(batch, heads, queries, size)
    caches = [(make(batch, kv_heads, context, size), make(batch, kv_heads, context, size)) for _ in range(count)]
    attend = partial(
        torch.nn.functional.scaled_dot_product_attention, is_causal=queries > 1, enable_gqa=heads != kv_heads
    )
    return [partial(attend, q, keys, values) for keys, values in caches]


def layer(model: ModelSpec, group: LayerGroup, tokens: int, device: str) -> Task:
    """One real layer of the model over a prompt of `tokens`: what the sum of its operators is held against."""

    def build() -> list[Callable[[], Any]]:
        from fwopt.collect.torch_layer import TorchLayer

        count = copies(sum(p.n * p.k for p in parts) * _BF16, device)
        return [
            partial(TorchLayer(model, group, device), TorchLayer.input(model, tokens, device)) for _ in range(count)
        ]

    parts = shapes.layer(model, group, Bf16(), Parallelism()).products
    return Task("layer", {"model": model.config_digest, "scheme": "bf16", "tokens": tokens}, build)
