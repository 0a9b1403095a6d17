"""What `fwopt capacity` does: one bisection a deployment, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwopt.errors import InputError
from fwopt.search.capacity import CEILING, FLOOR, Edge, capacity_of, find_edge
from fwopt.search.dominance import Dominance
from fwopt.search.evaluators import Evaluator
from fwopt.search.ladder import Ask, Ladder
from fwopt.search.log import TrialLog
from fwopt.search.notes import seconds
from fwopt.search.run import cores
from fwopt.search.steps import lockstep
from fwopt.spec.base import Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import Objective
from fwopt.spec.outcome import Evaluation, Rejected
from fwopt.spec.plan import Capacity


@dataclass(frozen=True, slots=True)
class Cases:
    """Deployments of one model on one workload."""

    named: tuple[tuple[str, Candidate], ...]
    evaluator: Evaluator
    objective: Objective
    window_s: float
    """First to last arrival at rate 1."""
    rate_scale: float
    """Of the workload against the trace."""
    notes: tuple[str, ...]


class Measured(Frozen):
    """The answer for one deployment."""

    name: str
    candidate: Candidate
    capacity: Capacity | None
    """None: the limits do not hold at any rate tried."""
    at_rate_1: Evaluation | Rejected
    notes: tuple[str, ...]


def of_run(run: Path, trace: Path | None, slos: Sequence[str], skip_bad: bool, given: dict[str, Any]) -> Cases:
    """Chosen plan and baseline of a run, on its own trace or another one."""
    from fwopt.search.job import reopen
    from fwopt.search.run_folder import RunFolder, read_inputs, read_plan
    from fwopt.spec.objective import Slo

    for name in ("model", "hardware", "price", "replicas", "rate_scale"):
        if given[name] is not None:
            raise InputError(f"--{name.replace('_', '-')}: a run brings its own; leave it out, or name a config file")
    plan = read_plan(run)
    folder = RunFolder(run if run.is_dir() else run.parent)
    inputs = read_inputs(folder.path)
    if trace is not None:
        changes = {"trace_format": given["format"], "skip_bad": skip_bad, "only_model": given["only_model"]}
        inputs = inputs.model_copy(update=changes)
    if slos:
        limits = tuple(Slo.parse(text) for text in slos)
        inputs = inputs.model_copy(update={"objective": inputs.objective.model_copy(update={"slos": limits})})
    job = reopen(inputs, trace=trace, profiles=given["profiles"], folder=folder.path, same_traffic=trace is None)
    entries = (("chosen", plan.chosen or plan.nearest_miss), ("baseline", plan.baseline))
    named = [(("nearest miss" if plan.chosen is None and n == "chosen" else n), e.candidate) for n, e in entries if e]
    if not named:
        raise InputError(f"{run} holds no deployment (status {plan.status})")
    window = job.traffic.workload.duration_s
    return _checked(Cases(tuple(named), job.evaluator, inputs.objective, window, inputs.rate_scale, job.notes))


def of_config(config: Path, trace: Path | None, slos: Sequence[str], skip_bad: bool, given: dict[str, Any]) -> Cases:
    from fwopt.cli.what_if import prepare_what_if

    if not config.exists():
        raise InputError(f"{config}: no such run folder or config file; name one, and with a config its trace")
    if trace is None:
        raise InputError(f"{config} is a config file: name the trace too, e.g. fwopt capacity {config} workload.jsonl")
    scale = 1.0 if given["rate_scale"] is None else given["rate_scale"]
    options = {name: given[name] for name in ("model", "hardware", "price", "replicas", "format", "only_model")}
    case = prepare_what_if(
        trace, config=config, router=None, rate_scale=scale, slos=slos, skip_bad=skip_bad,
        profiles=given["profiles"], **options,
    )  # fmt: skip
    evaluator = case.evaluator
    named = ((config.name, case.candidate),)
    return _checked(Cases(named, evaluator, evaluator.objective, evaluator.workload.duration_s, scale, case.notes))


def _checked(cases: Cases) -> Cases:
    if not cases.objective.slos:
        raise InputError("capacity is where a limit breaks, and none is given; add for example --slo 'ttft:p99<2s'")
    if cases.window_s <= 0:
        raise InputError("all requests of the trace arrive at once: there is no arrival rate to scale")
    return cases


def measure(cases: Cases, workers: int | None) -> list[Measured]:
    ladder = Ladder(cases.evaluator, (), Dominance(cases.objective), TrialLog(), workers or cores())
    candidates = [candidate for _, candidate in cases.named]

    def answer(batch: list[tuple[int, float]]) -> list[Evaluation | Rejected]:
        return [t.outcome for t in ladder.run([Ask(candidates[i], "capacity", rate) for i, rate in batch])]

    try:
        edges: list[Edge] = lockstep([find_edge() for _ in candidates], answer)
    finally:
        ladder.close()
    found = []
    for (name, candidate), edge in zip(cases.named, edges, strict=True):
        first = ladder.log.get(Ask(candidate).key)
        assert first is not None
        found.append(
            Measured(
                name=name,
                candidate=candidate,
                capacity=capacity_of(edge, cases.window_s),
                at_rate_1=first.outcome,
                notes=cases.notes,
            )
        )
    return found


def as_json(found: Sequence[Measured]) -> str:
    import json

    return json.dumps([m.model_dump(mode="json") for m in found], indent=2)


def show(found: Sequence[Measured]) -> None:
    from rich.console import Console
    from rich.text import Text

    from fwopt.errors import plain

    console = Console(highlight=False)
    for m in found:
        console.print(Text.assemble((plain(m.name), "bold"), f"  {m.candidate.label}"))
        for line in _lines(m):
            console.print(Text(f"  {line}"))
    for note in found[0].notes:
        console.print(Text(f"- {plain(note)}", "dim"))


def _lines(m: Measured) -> list[str]:
    lines = []
    if m.at_rate_1.kind == "evaluation":
        values = ", ".join(f"{r.slo} {'kept' if r.met else 'missed'} ({seconds(r.value_s)})" for r in m.at_rate_1.slos)
        lines.append(f"at this traffic: {values}")
    c = m.capacity
    if c is None:
        return [*lines, f"keeps the limits at no rate down to {FLOOR:.3g} of this traffic"]
    if c.limited_by is None:
        reach = f"every limit still holds at {CEILING:g} times this traffic, the highest rate tried"
    else:
        change = (
            f"{c.rate_scale - 1:+.0%} headroom" if c.rate_scale >= 1 else f"{1 - c.rate_scale:.0%} too much traffic"
        )
        reach = f"limits hold up to {c.rate_scale:.3g} times this traffic ({change}); {c.limited_by} breaks within "
        reach += f"{c.tolerance:.0%} above"
    lines.append(reach)
    price = f", ${c.usd_per_1m_output_tokens:.3f} per 1M output tokens" if c.usd_per_1m_output_tokens else ""
    lines.append(f"there: {c.requests_per_s:.4g} requests/s, {c.output_tokens_per_s:,.0f} output tokens/s{price}")
    return lines
