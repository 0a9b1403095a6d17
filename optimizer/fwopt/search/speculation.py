"""Drafters as an axis of the search: those that `fwopt speculation` measured on the workload's own replies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fwopt.errors import InputError
from fwopt.perf.costs import Costs
from fwopt.perf.speculating import SpeculatingCosts
from fwopt.search.space import SearchSpace
from fwopt.spec.engine import EngineSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.speculation import Acceptance, KnownDrafters, read_speculation
from fwopt.targets import load_model


def known_drafters(path: Path | None, model: ModelSpec, engine: EngineSpec) -> KnownDrafters | None:
    """What candidates may name; None: the search goes without."""
    if path is None:
        return None
    file = path / "results.json" if path.is_dir() else path
    results = read_speculation(file)
    if engine.name != "vllm":
        raise InputError(
            f"--speculation: is written for and simulated under vLLM only, not {engine.name}; leave it out"
        )
    if results.config_digest != model.config_digest:
        raise InputError(
            f"{file}: was measured with {results.model} (config {results.config_digest}), the plan is for {model.name} "
            f"({model.config_digest}); run `fwopt speculation` with this model"
        )
    named = {a.drafter.model for a in results.drafters if a.drafter.kind == "draft"}
    return KnownDrafters(results=results, models={name: load_model(name) for name in sorted(named)})


def with_drafters(space: SearchSpace, known: KnownDrafters | None) -> SearchSpace:
    """Without speculation first: the engine's default."""
    if known is None:
        return space
    return space.model_copy(update={"speculation": (None, *(a.drafter for a in known.results.drafters))})


def speculating(costs: Costs, known: KnownDrafters | None, costs_of: Callable[[ModelSpec], Costs]) -> Costs:
    if known is None:
        return costs
    return SpeculatingCosts(costs, {name: costs_of(model) for name, model in known.models.items()})


def described(known: KnownDrafters | None) -> str:
    """What took part, and how its figures are known."""
    if known is None:
        return ""
    replies, results = known.results.drafters[0].overall.replies, known.results
    return (
        f"speculation: {', '.join(map(_rate, results.drafters))}, measured on {replies} {results.settings.replies} "
        f"replies of {', '.join(results.text)}; others give other figures. The time of checking guesses is a floor: "
        "docs/speculation.md says how far a real server was from it"
    )


def _rate(found: Acceptance) -> str:
    rate = found.overall.tokens_per_step
    span = f" ({rate.low:.2f} to {rate.high:.2f})" if rate.low is not None and rate.high is not None else ""
    return f"{found.drafter.name} gives {rate.value:.2f} tokens a step{span}"
