"""One rank's model, cache and captured graphs: a plan in, logits out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fwopt.engine import cache as kv
from fwopt.engine.batch import Plan, make_batch
from fwopt.engine.checkpoint import open_checkpoint
from fwopt.engine.graphs import DecodeGraphs
from fwopt.engine.model import Model
from fwopt.engine.parallel import Ranks
from fwopt.engine.settings import Settings
from fwopt.engine.weights import Loader
from fwopt_kernels.choice import Choices
from fwopt_kernels.contract import FALLBACK, Variant

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
GROUP_BYTES = 400_000
"""Keys and values that a processor copies while one more call of attention in a layer is set up: 30 to 60 us on 2 cores
of a Xeon. Kernels of a GPU are fewer and captured: its decodes attend all at once."""


class Runner:
    """Loads on construction; `allocate` the cache before the first `run`."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.device = torch.device("cuda", ranks.rank) if settings.device == "cuda" else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            torch.set_num_threads(settings.threads)
        self.dtype = _DTYPES[settings.dtype]
        self.block_size = settings.candidate.batching.block_size
        kernels = Choices(settings.choices, default=_default(self.device)) if settings.operators == "triton" else None
        self.kernels = kernels
        """Variants of `fwopt_kernels`; None: torch computes all."""
        loader = Loader(
            settings.architecture,
            open_checkpoint(settings.model, settings.load_format),
            settings.candidate.quantization,
            ranks,
            self.dtype,
            self.device,
            kernels,
        )
        with torch.inference_mode():
            self.model = Model(settings.architecture, loader, ranks, settings.max_model_len, kernels)
        self._cache_dtype = kv.cache_dtype(settings, self.dtype)
        self.block_bytes = kv.block_bytes(
            settings.architecture, self.model.kv_heads, self.block_size, self._cache_dtype
        )
        cpu = self.device.type == "cpu"
        self.group_blocks = GROUP_BYTES * len(self.model.layers) // self.block_bytes if cpu else None
        """See `make_plan`."""
        self.caches: list[Tensor] = []
        self._blocks = 0
        most = settings.candidate.batching.max_num_seqs
        self.capture_sizes = tuple(sorted({min(size, most) for size in settings.capture_sizes}))
        """Without sizes that only steps with prompt chunks could fill: those are not captured here."""
        self._graphs: DecodeGraphs | None = None
        self._events = _event_pair() if self.device.type == "cuda" else None
        self.captured: int | None = None
        """Size of the graph that the last `run` replayed."""

    def allocate(self, blocks: int) -> None:
        """One block more than asked for takes padding."""
        with torch.inference_mode():
            shape, make = self.settings.architecture, self.model.path.allocate
            size = (blocks + 1, self.model.kv_heads, self.block_size, shape.head_dim)
            self.caches = [make(*size, self._cache_dtype, self.device) for _ in shape.layers]
            self._blocks = blocks

    @torch.inference_mode()
    def run(self, plan: Plan) -> Tensor:
        """Logits (sampled tokens, vocabulary) in float32; writes the cache."""
        key = self._graphs.fitting(plan) if self._graphs is not None else None
        self.captured = key[0] if key is not None else None
        if self._events is not None:
            self._events[0].record()
        logits = self._launch(plan) if key is None else self._replay(plan, key)
        if self._events is not None:
            self._events[1].record()
        return logits

    def _replay(self, plan: Plan, key: tuple[int, int]) -> Tensor:
        assert self._graphs is not None
        return self._graphs.replay(plan, key)

    def _launch(self, plan: Plan) -> Tensor:
        """Operator by operator."""
        batch = make_batch(plan, self.block_size, self.model.masks, self.device)
        hidden = self.model.forward(batch, self.caches)
        return self.model.logits(hidden[batch.sampled])

    def rehearse(self) -> None:
        """Run the largest step once with a cache just large enough, so that its memory is known to be needed."""
        batching = self.settings.candidate.batching
        tokens = min(batching.max_num_batched_tokens, self.settings.max_model_len)
        if self.device.type == "cpu":
            tokens = min(tokens, 64)  # memory is no question there; this only loads what is loaded lazily
        blocks = -(-tokens // self.block_size)
        self.allocate(blocks)
        order = np.arange(tokens)
        none = np.empty((0, 0), dtype=np.int64)
        self.run(Plan(order % 7, order, order, order[-1:], 0, none, ((0, tokens, np.arange(blocks)),), ()))
        self.caches = []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self) -> None:
        """One decode step, and the capture of all graphs."""
        self.run(decode_plan(1))
        if self.capture_sizes:
            graphs = DecodeGraphs(self.model, self.caches, self._blocks, self.block_size, self.capture_sizes)
            graphs.capture()
            self._graphs = graphs

    def device_s(self) -> float | None:
        """Device time of the last `run`; waits for it. None on a CPU."""
        if self._events is None:
            return None
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3


def _default(device: torch.device) -> Variant | None:
    """What kernels without a tuned variant run in: on a processor no kernel runs, but in Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("0", "")
    return FALLBACK if device.type == "cpu" and not interpreted else None


def _event_pair() -> tuple[Any, Any]:
    event: Any = torch.cuda.Event
    return event(enable_timing=True), event(enable_timing=True)


def decode_plan(size: int) -> Plan:
    """`size` decodes of a first token, which touch no block but the first."""
    zeros = np.zeros(size, dtype=np.int64)
    return Plan(zeros, zeros, zeros, np.arange(size), size, np.zeros((size, 1), dtype=np.int64), (), ((size, 1),))
