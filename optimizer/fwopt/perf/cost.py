"""A candidate's step times: operators summed over layers, as the tables the simulator reads.

`CostModel` is built once per model, device, engine and profile. What a candidate changes is cached by what it depends
on: scheduler limits change the captured sizes only, so a search over them costs next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import UnmeasuredError
from fwopt.perf import axes, capture, shapes
from fwopt.perf.bound import StepBound
from fwopt.perf.calibration import Calibration, load_calibration
from fwopt.perf.grid import Floats, StepGrid
from fwopt.perf.operators import attention, moe
from fwopt.perf.operators.collective import CollectiveTable
from fwopt.perf.operators.elementwise import ElementwiseTable
from fwopt.perf.operators.gemm import GemmTable
from fwopt.perf.operators.linear_attention import LinearTable
from fwopt.perf.operators.mla import MlaTable, open_mla, prefill_shape
from fwopt.perf.priors import Overheads, Priors, load_overheads, load_priors
from fwopt.perf.store import Profile
from fwopt.perf.timed import Timed
from fwopt.spec.candidate import Candidate, Parallelism, Quantization
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import GroupedQueryAttention, LayerGroup, LinearAttention, ModelSpec
from fwopt.spec.provenance import BOUND


class CostModel:
    """Step times of one model on one device type under one engine."""

    def __init__(
        self,
        model: ModelSpec,
        device: DeviceSpec,
        engine: EngineSpec,
        profile: Profile,
        overheads: Overheads | None = None,
        priors: Priors | None = None,
        calibration: Calibration | None = None,
        eager_all_reduce: bool = True,
    ) -> None:
        """`calibration` None: the shipped one of this engine; `Calibration(engine=…)` switches it off.
        `eager_all_reduce` False: all-reduce outside CUDA graphs is as fast as in them."""
        self.model, self.device, self.engine, self.profile = model, device, engine, profile
        self.calibration = calibration or load_calibration(engine.name)
        stated = overheads or load_overheads(engine.name)
        self.overheads = stated.model_copy(update=self.calibration.overheads)
        self.priors = priors or load_priors()
        self._outside_graphs = "eager" if eager_all_reduce else "graph"
        self._cache: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.RLock()
        self.tokens = axes.token_axis(self._gemm.rows)
        self.lengths = axes.length_axis(model.max_context_tokens)
        self.contexts = axes.context_axis(model.max_context_tokens)
        self.batches = axes.DECODE_BATCH

    def grid(self, candidate: Candidate) -> StepGrid:
        """Step times of `candidate`; UnmeasuredError where nothing measured or stated covers it."""
        p, b, q = candidate.parallelism, candidate.batching, candidate.quantization
        if p.pp > 1:
            raise UnmeasuredError(f"pipeline parallelism is not modelled (pp={p.pp}); use tp")
        if b.max_num_batched_tokens > axes.LARGEST_STEP_TOKENS:
            raise UnmeasuredError(f"token budgets beyond {axes.LARGEST_STEP_TOKENS} are not modelled")
        kv = candidate.kv_dtype
        least = StepBound.of(self.model, self.device, candidate)
        graph, eager = self._once(("token", q, p.tp, p.dp, p.ep), lambda: self._token(q, p, least))
        decode, prefill, floor_s = self._once(("attention", q, p.tp, kv), lambda: self._attention(q, p, kv, least))
        sample = self._once(("sample", p.tp), lambda: self._sample(p.tp, least))
        o = self.overheads
        return StepGrid(
            tokens=self.tokens,
            token_graph_s=graph.seconds,
            token_eager_s=eager.seconds,
            token_share=graph.share,
            capture_sizes=self._captured(candidate),
            decode_batch=self.batches,
            decode_context=self.contexts,
            decode_s=decode.seconds,
            decode_share=decode.share,
            prefill_length=self.lengths,
            prefill_s=prefill.seconds,
            prefill_share=prefill.share,
            sample_batch=self.batches,
            sample_s=sample.seconds,
            sample_share=sample.share,
            prefill_chunk_floor_s=floor_s,
            step_cpu_s=o.step_cpu_s,
            sequence_cpu_s=o.sequence_cpu_s,
            serial_s=o.serial_s,
            sequence_serial_s=o.sequence_serial_s,
            prefill_step_s=o.prefill_step_s + (o.special_prefill_step_s if self._special else 0.0),
            prefill_in_graphs=o.prefill_in_graphs,
            request_s=o.request_s,
            prompt_token_s=o.prompt_token_s,
            front_s=o.front_s,
            chunk_s=o.chunk_s,
            async_scheduling=o.async_scheduling,
        )

    def _captured(self, candidate: Candidate) -> NDArray[np.int64]:
        """A processor has no graphs to capture."""
        if self.device.kind == "cpu":
            return np.zeros(0, dtype=np.int64)
        most, each = self.overheads.max_captured_tokens, candidate.tokens_per_decode
        return capture.capture_sizes(self.engine.name, candidate.batching, most, each)

    def _once(self, key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = build()
            return self._cache[key]

    @property
    def _special(self) -> bool:
        """Attention other than plain grouped queries: its prompts run a path of their own in every engine."""
        return any(group.attention.kind != "gqa" for group in self.model.layers)

    # Operator tables, shared by every model on the profile.

    def _table(self, operator: str, build: Callable[[], Any]) -> Any:
        return self.profile.built((operator, self.device, self.priors.version), build)

    @property
    def _gemm(self) -> GemmTable:
        rules = self.priors.substitutes.dense
        table: GemmTable = self._table("gemm", lambda: GemmTable(self.profile.columns("gemm"), self.device, rules))
        return table

    @property
    def _mla(self) -> MlaTable:
        table: MlaTable = self._table("mla", lambda: open_mla(self.profile, self._gemm))
        return table

    @property
    def _linear(self) -> LinearTable:
        table: LinearTable = self._table(
            "linear_attention", lambda: LinearTable(self.profile.columns("linear_attention"), self.device)
        )
        return table

    @property
    def _prefill(self) -> attention.PrefillTable:
        columns, device = self.profile.columns, self.device
        table: attention.PrefillTable = self._table(
            "prefill_attention", lambda: attention.PrefillTable(columns("prefill_attention"), device)
        )
        return table

    def _communicate(self, kind: str, gpus: int, elements: Floats) -> Timed:
        operator, column = ("all_reduce", "mode") if kind in ("graph", "eager") else ("collective", "op")
        if gpus == 1:
            return Timed.zero(elements.shape)
        table: CollectiveTable = self._table(operator, lambda: CollectiveTable(self.profile.columns(operator), column))
        return table.time(kind, gpus, elements) * self.calibration.factor("comm")

    # What depends on the step's tokens.

    def _token(self, q: Quantization, p: Parallelism, least: StepBound) -> tuple[Timed, Timed]:
        tokens, hidden = self.tokens, self.model.hidden_size
        total, kernels = self._elementwise(2 * 2.0 * hidden), 1
        for group in self.model.layers:
            fused = shapes.fuses_shared_expert(self.engine.name, group, p)
            layer = shapes.layer(self.model, shapes.with_shared_expert_routed(group) if fused else group, q, p)
            total += self._layer(layer) * group.count
            kernels += layer.kernels * group.count
            if group.attention.kind == "mla":
                heads = shapes.local_heads(group.attention.heads, p.tp)
                up = self._mla.up(group.attention, heads, shapes.scheme(q).attention, tokens)
                total += up * (group.count * self.calibration.factor("mla_projections"))
                kernels += 4 * group.count
            if layer.experts and p.dp > 1:
                total += self._exchange(p) * group.count
        total += Timed.of(np.full(len(tokens), kernels * self.overheads.kernel_gap_s), BOUND)
        reductions = 2 * self.model.layer_count + 1
        graph = total + self._communicate("graph", p.tp, tokens * hidden) * reductions
        eager = total + self._communicate(self._outside_graphs, p.tp, tokens * hidden) * reductions
        floor = least.token_s(tokens)  # a fitted factor below one may not undercut the roofline; below likewise
        return graph.at_least(floor, BOUND), eager.at_least(np.maximum(kernels * self.overheads.launch_s, floor), BOUND)

    def _layer(self, layer: shapes.Layer) -> Timed:
        total = Timed.zero((len(self.tokens),))
        for product in layer.products:
            total += self._once(("product", product), partial(self._product, product))
        for kernel in self._timed_elementwise(layer):
            total += kernel
        if layer.experts:
            total += self._once(("experts", layer.experts), partial(self._experts, layer.experts))
        return total

    def _product(self, p: shapes.Product) -> Timed:
        factor = self.calibration.factors_over("gemm", p.dtype, self.tokens)
        return self._gemm.time(p.dtype, self.tokens, p.n, p.k) * factor

    def _experts(self, e: shapes.Experts) -> Timed:
        """Every data-parallel rank brings `self.tokens`; tensor-parallel ranks share the same ones."""
        routing, rules = self.priors.moe.routing, self.priors.substitutes.moe
        table: moe.MoeTable = self._table(
            "moe", lambda: moe.MoeTable(self.profile.columns("moe"), self.device, routing, rules)
        )
        shape = moe.Shape(e.dtype, e.hidden, e.inter, e.topk, e.experts, e.tp, e.ep)
        rows = self.tokens * e.sharers
        return table.time(shape, rows) * self.calibration.factors_over("moe", e.dtype, rows)

    def _exchange(self, p: Parallelism) -> Timed:
        """Data-parallel attention: tokens of all ranks are gathered before the experts and scattered after them."""
        elements = self.tokens * p.dp * self.model.hidden_size
        gather = self._communicate("all_gather", p.dp, elements)
        return gather + self._communicate("reduce_scatter", p.dp, elements)

    def _timed_elementwise(self, layer: shapes.Layer) -> Iterator[Timed]:
        """By fwopt's own kernels where the profile has their times."""
        timed = None
        for e in layer.elementwise:
            if e.fused and timed is not None:
                continue
            timed = None if self._own is None or e.kernel is None else self._own.time(e.kernel, self.tokens)
            yield self._elementwise(e.bytes_per_token) if timed is None else timed

    @property
    def _own(self) -> ElementwiseTable | None:
        if not self.profile.has("elementwise"):
            return None
        columns = self.profile.columns
        table: ElementwiseTable = self._table("elementwise", lambda: ElementwiseTable(columns("elementwise")))
        return table

    def _elementwise(self, bytes_per_token: float, rows: Floats | None = None) -> Timed:
        prior = self.priors.elementwise
        rate = prior.bandwidth_efficiency * self.device.bandwidth_bytes_per_s
        moved = (self.tokens if rows is None else rows) * bytes_per_token
        seconds = np.maximum(moved / rate, prior.kernel_floor_s) * self.calibration.factor("elementwise")
        return Timed.of(seconds, BOUND)

    # What depends on contexts.

    def _attention(self, q: Quantization, p: Parallelism, kv: str, least: StepBound) -> tuple[Timed, Timed, float]:
        decode = Timed.zero((len(self.batches), len(self.contexts)))
        prefill, floor_s = Timed.zero((len(self.lengths),)), 0.0
        for group in self.model.layers:
            d, a, floor = self._attention_layer(group, q, p, kv)
            decode, prefill, floor_s = (
                decode + d * group.count,
                prefill + a * group.count,
                floor_s + floor * group.count,
            )
        cached = least.decode_s(self.batches[:, None], self.contexts)
        return decode.at_least(cached, BOUND), prefill.at_least(least.prefill_s(self.lengths), BOUND), floor_s

    def _attention_layer(
        self, group: LayerGroup, q: Quantization, p: Parallelism, kv: str
    ) -> tuple[Timed, Timed, float]:
        a = group.attention
        if isinstance(a, LinearAttention):
            factor = self.calibration.factor("linear_attention")
            decode_linear = (self._linear.decode(a, p.tp, self.batches) * factor).along(len(self.contexts))
            return decode_linear, self._linear.prefill(a, p.tp, self.lengths) * factor, self._linear.floor_s(a, p.tp)
        heads = shapes.local_heads(a.heads, p.tp)
        if not isinstance(a, GroupedQueryAttention):
            cached = self._mla.decode(a, heads, shapes.scheme(q).attention, kv, self.batches, self.contexts)
            expanded, times = prefill_shape(a, heads)
            return (
                cached * self.calibration.factor("mla_decode"),
                self._prefill.time(expanded, self.lengths) * (times * self.calibration.factor("mla_prefill")),
                self._prefill.floor_s(expanded) * times,
            )
        shape = attention.Shape(kv, heads, shapes.local_kv_heads(a.kv_heads, p.tp), a.head_dim, a.window_tokens or 0)
        columns, device = self.profile.columns, self.device
        decode: attention.DecodeTable = self._table(
            "decode_attention", lambda: attention.DecodeTable(columns("decode_attention"), device)
        )
        return (
            decode.time(shape, self.batches, self.contexts) * self.calibration.factor("attention_decode"),
            self._prefill.time(shape, self.lengths) * self.calibration.factor("attention_prefill"),
            self._prefill.floor_s(shape),
        )

    # What depends on the sequences that get a token.

    def _sample(self, tp: int, least: StepBound) -> Timed:
        rows, prior = self.batches, self.priors.sampling
        columns = shapes.vocabulary(self.model, tp)
        head = self._gemm.time("bf16", rows, columns, self.model.hidden_size)
        gather = self._communicate("all_gather", tp, rows * columns * tp)
        logits = self._elementwise(prior.logit_passes * 4.0 * self.model.vocab_size, rows)
        floor_s = prior.kernels * self.priors.elementwise.kernel_floor_s
        total = head + gather + logits + Timed.of(np.full(len(rows), floor_s), BOUND)
        return total.at_least(least.sample_s(rows), BOUND)
