"""Drafters as an axis of the search: those that `fwopt speculation` measured on the workload's own replies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fwopt.errors import InputError
from fwopt.perf.costs import Costs
from fwopt.perf.speculating import SpeculatingCosts
from fwopt.search.space import SearchSpace
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.speculation import KnownDrafters, SpeculationResults, read_speculation
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


def described(known: KnownDrafters | None, chosen: Candidate | None) -> str:
    """What was chosen of the drafters, and how its figures are known."""
    if known is None or chosen is None:
        return ""
    on = f"{_replies(known.results)} of {', '.join(known.results.text)}"
    if chosen.speculation is None:
        names = ", ".join(a.drafter.name for a in known.results.drafters)
        return f"no speculation: none of {names}, measured on {on}, makes it better"
    found = known.measured(chosen.speculation)
    assert found is not None
    rate = found.overall.tokens_per_step
    span = f", {rate.low:.2f} to {rate.high:.2f}" if rate.low is not None and rate.high is not None else ""
    return (
        f"speculation {chosen.speculation.name}: {rate.value:.2f} tokens a step{span} measured on {on}; other replies "
        "give other figures. Checking several tokens of a sequence is taken to read its context once, which is a floor"
    )


def _replies(results: SpeculationResults) -> str:
    count = results.drafters[0].overall.replies
    return f"{count} {results.settings.replies} replies"
