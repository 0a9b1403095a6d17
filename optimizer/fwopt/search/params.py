"""Candidate <-> Optuna parameters. Ordered axes are integer indices, unordered ones are choices of short names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import Trial

from fwopt.search.schemes import scheme_name
from fwopt.search.space import SearchSpace, layout_name
from fwopt.spec.candidate import Candidate, Parallelism, Quantization

Pick = Callable[[str, BaseDistribution], Any]
"""Chooses a value for the named parameter."""


def _replicas_name(layout: Parallelism) -> str:
    """Layouts of one size share the parameter, so that what is learnt of one serves the others."""
    return f"replicas_of_{layout.gpus_per_replica}_gpus"


def _layout_axis(space: SearchSpace, quantization: Quantization) -> str:
    """One parameter for all precisions that allow the same layouts: Optuna wants equal choices per name."""
    names = [layout_name(p) for p in space.usable_layouts(quantization)]
    same = all(layout_name(p) in names for p in space.layouts if space.replica_counts(p))
    return "layout" if same else f"layout_of_{scheme_name(quantization)}"


def build(space: SearchSpace, pick: Pick) -> Candidate:
    """A valid candidate, each axis chosen by `pick`."""

    def choice(name: str, values: Sequence[str]) -> int:
        return values.index(pick(name, CategoricalDistribution(values)))

    def ordered(name: str, values: Sequence[Any]) -> Any:
        return values[pick(name, IntDistribution(0, len(values) - 1))]

    quantization = space.quantizations[choice("quantization", [scheme_name(q) for q in space.quantizations])]
    kv_dtype = space.kv_dtypes[choice("kv_dtype", list(space.kv_dtypes))]
    layouts = space.usable_layouts(quantization)
    layout = layouts[choice(_layout_axis(space, quantization), [layout_name(p) for p in layouts])]
    replicas = ordered(_replicas_name(layout), space.replica_counts(layout))
    batching = space.batching(
        ordered("max_num_seqs", space.max_num_seqs),
        ordered("max_num_batched_tokens", space.max_num_batched_tokens),
        ordered("gpu_memory_utilization", space.gpu_memory_utilization),
        ordered("prefix_caching", space.prefix_caching),
        kv_dtype,
    )
    router = space.router[choice("router", list(space.router))]
    kernels = ordered("kernels", space.kernels) if len(space.kernels) > 1 else space.kernels[0]
    drafter = ordered("speculation", space.speculation) if len(space.speculation) > 1 else space.speculation[0]
    return space.canonical(
        Candidate(
            quantization=quantization,
            kv_dtype=kv_dtype,
            parallelism=layout.model_copy(update={"replicas": replicas}),
            batching=batching,
            router=router,
            kernels=kernels,
            speculation=drafter,
        )
    )


def suggest(space: SearchSpace, trial: Trial) -> Candidate:
    """Let the sampler choose."""

    def pick(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, IntDistribution):
            return trial.suggest_int(name, distribution.low, distribution.high)
        assert isinstance(distribution, CategoricalDistribution)
        return trial.suggest_categorical(name, distribution.choices)

    return build(space, pick)


def to_params(space: SearchSpace, candidate: Candidate) -> dict[str, Any] | None:
    """The parameters that give this candidate, or None when it lies outside the space."""
    p, b = candidate.parallelism, candidate.batching
    layout = p.model_copy(update={"replicas": 1})
    wanted = {
        "quantization": scheme_name(candidate.quantization),
        "kv_dtype": candidate.kv_dtype,
        _layout_axis(space, candidate.quantization): layout_name(layout),
        "router": candidate.router,
    }
    axes: dict[str, tuple[Sequence[Any], Any]] = {
        _replicas_name(layout): (space.replica_counts(layout), p.replicas),
        "max_num_seqs": (space.max_num_seqs, b.max_num_seqs),
        "max_num_batched_tokens": (space.max_num_batched_tokens, b.max_num_batched_tokens),
        "gpu_memory_utilization": (space.gpu_memory_utilization, b.gpu_memory_utilization),
        "prefix_caching": (space.prefix_caching, b.prefix_caching),
    }
    if len(space.kernels) > 1:
        axes["kernels"] = space.kernels, candidate.kernels
    if len(space.speculation) > 1:
        axes["speculation"] = space.speculation, candidate.speculation
    if any(value not in values for values, value in axes.values()):
        return None
    params = wanted | {name: list(values).index(value) for name, (values, value) in axes.items()}
    try:
        same = from_params(space, params) == space.canonical(candidate)
    except (KeyError, ValueError):
        return None
    return params if same else None


def from_params(space: SearchSpace, params: Mapping[str, Any]) -> Candidate:
    return build(space, lambda name, distribution: params[name])


def distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The distribution of every parameter that this candidate has (which there are depends on its layout)."""
    found: dict[str, BaseDistribution] = {}

    def pick(name: str, distribution: BaseDistribution) -> Any:
        found[name] = distribution
        return params[name]

    build(space, pick)
    return found
