"""What may vary: the axes of the search for one model on one kind of hardware."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from fwopt.errors import InputError, NothingFitsError
from fwopt.search.schemes import scheme_name
from fwopt.spec.base import Frozen
from fwopt.spec.candidate import Batching, Candidate, KvDtype, Parallelism, Quantization
from fwopt.spec.kernels import SetDigest
from fwopt.spec.router import RouterPolicy
from fwopt.spec.speculation import Drafter

ROUTERS: tuple[RouterPolicy, ...] = ("least_requests", "round_robin")
"""Policies that need to know nothing of prompts."""
Fraction = Annotated[float, Field(gt=0, le=1)]


class SpaceOverrides(Frozen):
    """The `search:` section of fwopt.yaml: each key replaces the default values of one axis."""

    quantizations: tuple[str, ...] | None = None
    """Of bf16, fp8, fp8-block, int8, w4a16, mxfp4; for llama.cpp gguf-f16, gguf-q8_0 and so on."""
    kv_dtypes: tuple[KvDtype, ...] | None = None
    tp: tuple[PositiveInt, ...] | None = None
    dp: tuple[PositiveInt, ...] | None = None
    ep: tuple[bool, ...] | None = None
    replicas: tuple[PositiveInt, ...] | None = None
    max_num_seqs: tuple[PositiveInt, ...] | None = None
    max_num_batched_tokens: tuple[PositiveInt, ...] | None = None
    gpu_memory_utilization: tuple[Fraction, ...] | None = None
    prefix_caching: tuple[bool, ...] | None = None
    router: tuple[RouterPolicy, ...] | None = None
    max_model_len: PositiveInt | None = None
    kernels: tuple[Literal["default", "tuned"], ...] | None = None
    """Of the reference engine: each kernel's default variant, what `fwopt kernels tune` found, or both compared."""

    @model_validator(mode="after")
    def _no_empty_axis(self) -> Self:
        for name in type(self).model_fields:
            if getattr(self, name) == ():
                raise ValueError(f"{name} must list at least one value; leave it out to search the default values")
        return self

    def taken(self) -> dict[str, Any]:
        """Axes given, of those that replace the default values as they are; precisions and layouts are checked
        against model and hardware first. Who wants prefixes followed and nothing else wants them cached."""
        found = {name: value for name in _AS_GIVEN if (value := getattr(self, name)) is not None}
        return {"prefix_caching": (True,)} | found if self.router == ("cache_aware",) else found


_AS_GIVEN = (
    "kv_dtypes",
    "replicas",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "prefix_caching",
    "router",
    "max_model_len",
)


class SearchSpace(Frozen):
    """Axes in full. A candidate takes one value of each; the first value of an axis is the engine's default
    where the axis has it. `replicas` is bounded by the GPUs at hand."""

    quantizations: tuple[Quantization, ...]
    kv_dtypes: tuple[KvDtype, ...] = ("bf16", "fp8")
    layouts: tuple[Parallelism, ...]
    """Ways to spread one copy of the model; `replicas` is 1 in each."""
    impossible: tuple[tuple[str, str], ...] = ()
    """(quantization name, layout name) pairs that the engine refuses."""
    gpus: PositiveInt
    replicas: tuple[PositiveInt, ...] | None = None
    """None: every count that the GPUs allow."""
    max_num_seqs: tuple[PositiveInt, ...] = (64, 128, 256, 512, 1024)
    max_num_batched_tokens: tuple[PositiveInt, ...] = (2048, 4096, 8192, 16384)
    gpu_memory_utilization: tuple[Fraction, ...] = (0.92, 0.95)
    prefix_caching: tuple[bool, ...] = (True, False)
    router: tuple[RouterPolicy, ...] = ROUTERS
    max_model_len: PositiveInt | None = None
    block_size: PositiveInt = 16
    """Tokens a KV block: the engine's own, not searched."""
    fp8_block_size: PositiveInt | None = None
    """The same with an FP8 cache, where the engine's attention over it takes other blocks; None: `block_size`."""
    kernels: tuple[SetDigest | None, ...] = (None,)
    """Sets of tuned kernels; None: each kernel's default."""
    speculation: tuple[Drafter | None, ...] = (None,)
    """Drafters whose acceptance was measured; None: no speculation."""

    @model_validator(mode="after")
    def _batching_is_valid(self) -> Self:
        if max(self.max_num_seqs) > min(self.max_num_batched_tokens):
            raise InputError(
                "search: vLLM needs max_num_batched_tokens >= max_num_seqs, got "
                f"{min(self.max_num_batched_tokens)} tokens with {max(self.max_num_seqs)} sequences"
            )
        if set(self.router) == {"cache_aware"} and False in self.prefix_caching:
            raise InputError("search: router [cache_aware] follows prefixes, so it needs prefix_caching [true]")
        return self

    def replica_counts(self, layout: Parallelism) -> tuple[int, ...]:
        """Ascending; empty when one copy needs more GPUs than there are."""
        most = self.gpus // layout.gpus_per_replica
        return tuple(r for r in (self.replicas or range(1, most + 1)) if r <= most)

    def usable_layouts(self, quantization: Quantization) -> tuple[Parallelism, ...]:
        """Layouts that the engine accepts for this precision and the GPUs suffice for."""
        scheme = scheme_name(quantization)
        return tuple(
            layout
            for layout in self.layouts
            if self.replica_counts(layout) and (scheme, layout_name(layout)) not in self.impossible
        )

    def structures(self) -> tuple[tuple[Quantization, Parallelism], ...]:
        """Every (precision, layout) that can exist."""
        return tuple((q, layout) for q in self.quantizations for layout in self.usable_layouts(q))

    @property
    def size(self) -> int:
        """Number of distinct candidates."""
        spreads = sum(
            len(self.routers(replicas, prefix))
            for (_, layout), prefix in product(self.structures(), self.prefix_caching)
            for replicas in self.replica_counts(layout)
        )
        batchings = len(self.max_num_seqs) * len(self.max_num_batched_tokens) * len(self.gpu_memory_utilization)
        return spreads * len(self.kv_dtypes) * batchings * len(self.kernels) * len(self.speculation)

    def routers(self, replicas: int, prefix_caching: bool) -> tuple[RouterPolicy, ...]:
        """One replica has nothing to route: the first of the axis stands for all. Without a prefix cache no replica has
        a prefix to follow."""
        usable = tuple(r for r in self.router if prefix_caching or r != "cache_aware")
        return usable if replicas > 1 else usable[:1]

    def canonical(self, candidate: Candidate) -> Candidate:
        """The candidate with a router that makes a difference, so that equals have equal ids."""
        usable = self.routers(candidate.parallelism.replicas, candidate.batching.prefix_caching)
        if candidate.router in usable:
            return candidate
        return candidate.model_copy(update={"router": usable[0]})

    def enumerate(self) -> Iterator[Candidate]:
        """Every candidate once, fewest GPUs first within each setting, always in the same order."""
        batchings = list(
            product(self.max_num_seqs, self.max_num_batched_tokens, self.gpu_memory_utilization, self.prefix_caching)
        )
        for (quantization, layout), kv in product(self.structures(), self.kv_dtypes):
            for replicas, router in product(self.replica_counts(layout), self.router):
                for (seqs, tokens, memory, prefix), kernels, drafter in product(
                    batchings, self.kernels, self.speculation
                ):
                    if router not in self.routers(replicas, prefix):
                        continue
                    yield Candidate(
                        quantization=quantization,
                        kv_dtype=kv,
                        parallelism=layout.model_copy(update={"replicas": replicas}),
                        batching=self.batching(seqs, tokens, memory, prefix, kv),
                        router=router,
                        kernels=kernels,
                        speculation=drafter,
                    )

    def batching(self, seqs: int, tokens: int, memory: float, prefix: bool, kv: KvDtype = "bf16") -> Batching:
        batching = Batching(
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            block_size=self.block_size,
            gpu_memory_utilization=memory,
            prefix_caching=prefix,
            max_model_len=self.max_model_len,
        )
        return self.in_blocks(batching, kv)

    def in_blocks(self, batching: Batching, kv: KvDtype) -> Batching:
        """In the KV blocks that the engine's attention takes with this cache."""
        blocks = self.fp8_block_size if kv == "fp8" else None
        return batching if blocks is None else batching.model_copy(update={"block_size": blocks})

    def default_batching(self) -> Batching:
        """The engine's defaults, or the nearest values that the axes allow."""
        ideal = Batching()
        near_seqs = min(self.max_num_seqs, key=lambda v: abs(v - ideal.max_num_seqs))
        near_tokens = min(self.max_num_batched_tokens, key=lambda v: abs(v - ideal.max_num_batched_tokens))
        near_memory = min(self.gpu_memory_utilization, key=lambda v: abs(v - ideal.gpu_memory_utilization))
        return self.batching(near_seqs, near_tokens, near_memory, self.prefix_caching[0])

    def require_any(self) -> None:
        """Refuse a space without a single candidate, before any work."""
        if self.structures():
            return
        least = min((layout.gpus_per_replica for layout in self.layouts), default=1)
        raise NothingFitsError(
            f"no layout of the search can run on {self.gpus} GPUs: the smallest needs {least}; "
            f"use for example --hardware NAME:{max(least, self.gpus * 2)} or widen search.tp in fwopt.yaml"
        )


def routers(shares_prefixes: bool) -> tuple[RouterPolicy, ...]:
    """The axis, by whether the trace says which prompts share a prefix."""
    return (*ROUTERS, "cache_aware") if shares_prefixes else ROUTERS


def layout_name(layout: Parallelism) -> str:
    """`tp2`, `tp1-dp8-ep`: how one copy of the model is spread."""
    dp = f"-dp{layout.dp}" if layout.dp > 1 else ""
    pp = f"-pp{layout.pp}" if layout.pp > 1 else ""
    return f"tp{layout.tp}{pp}{dp}{'-ep' if layout.ep else ''}"
