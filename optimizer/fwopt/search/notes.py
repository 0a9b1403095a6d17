"""Sentences of a plan: what was assumed, what fell short, what could change the answer."""

from __future__ import annotations

import math

from fwopt.search import ranking
from fwopt.search.capacity import FLOOR, TOLERANCE
from fwopt.search.derive import GPUS_PER_MACHINE
from fwopt.search.evals import EvalsScreen
from fwopt.search.run_folder import RunInputs
from fwopt.search.speculation import described
from fwopt.search.tuner import Found
from fwopt.spec.outcome import Evaluation, Rejected, SloResult, Trial
from fwopt.spec.router import ROUTER_PACKAGE


def seconds(value: float | None) -> str:
    if value is None:
        return "infinite (among rejected requests)"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def missed(evaluation: Evaluation) -> str:
    """Counted as one reason: the limits not kept."""
    names = [str(r.slo) for r in evaluation.slos if not r.met]
    return f"misses {' and '.join(names)}" if names else "finishes no request"


def shortfall(outcome: Evaluation | Rejected) -> str:
    if outcome.kind == "evaluation":
        return ": " + ", ".join(f"{r.slo.metric} {seconds(r.value_s)}" for r in outcome.slos if not r.met)
    if outcome.need is None or outcome.have is None:
        return ""
    if outcome.unit == "bytes":
        return f": needs {outcome.need / 2**30:.1f} GiB, has {outcome.have / 2**30:.1f} GiB"
    return f": needs {outcome.need:.4g}, has {outcome.have:.4g} {outcome.unit or ''}".rstrip()


def about(
    inputs: RunInputs, found: Found, chosen: Trial | None, miss: Trial | None, unmeasured: int
) -> tuple[str, ...]:
    lines = [_method(inputs, found), _choice(inputs), _cost(inputs), _dominance(inputs), _stopped(found)]
    lines += _misses(inputs, found, miss) if chosen is None else []
    if unmeasured:
        lines.append(
            f"what rests on assumed operator times for more than {ranking.ASSUMED_LIMIT:.0%} of its GPU time is shown "
            "and not chosen"
        )
    if chosen is not None and chosen.candidate.parallelism.dp > 1:
        lines.append("data-parallel ranks are simulated as stepping together with equal load")
    if chosen is not None and chosen.candidate.parallelism.gpus > GPUS_PER_MACHINE:
        lines.append(
            f"{chosen.candidate.parallelism.gpus} GPUs are more than one machine has: start `run.sh N` where replica N "
            "lives, and give the router its address"
        )
    if chosen is not None and chosen.candidate.router == "cache_aware":
        lines.append(
            f"requests go where their prefix went before: SGLang's router does it (pip install {ROUTER_PACKAGE}, which "
            "run.sh starts), its rule was simulated on the prefixes that the trace records"
        )
    lines.append(_kernels(inputs, chosen))
    lines.append(described(inputs.drafters))
    evals = EvalsScreen.of(inputs)
    lines += evals.notes(chosen.candidate if chosen is not None else None)
    return tuple(line for line in lines if line)


def _kernels(inputs: RunInputs, chosen: Trial | None) -> str:
    """Whether the chosen deployment runs with what was tuned, where there was a choice."""
    tuned = inputs.kernels
    if tuned is None or chosen is None:
        return ""
    if chosen.candidate.kernels is None:
        return f"the engine's default kernels serve as well as those tuned on {tuned.device_full_name}, or better"
    return (
        f"runs with the kernels tuned on {tuned.device_full_name} with Triton {tuned.triton} (set {tuned.digest}), "
        "exported beside its config; `fwopt serve` loads these and refuses where they do not hold"
    )


def _method(inputs: RunInputs, found: Found) -> str:
    if found.enumerated:
        return f"all {inputs.space.size} candidates of the space were considered"
    return (
        f"{inputs.space.size:,} candidates in the space: the engine's own batching on every precision and layout "
        "first, then suggestions of a tree-structured Parzen estimator, then the best with a replica less"
    )


def _choice(inputs: RunInputs) -> str:
    goals = inputs.objective.goals
    if len(goals) > 1:
        return (
            "of the Pareto front the plan takes the point nearest to the best of every goal, each scaled to its range"
        )
    if not inputs.objective.slos:
        return ""
    most = "requests/s" if goals[0].metric in ("throughput", "goodput") else "requests/s per GPU (least $/token)"
    return (
        f"values of '{goals[0]}' within {ranking.tie_width(goals[0]) * 100:g} % tie; of the ties the plan takes "
        f"the one with most {most} at the rate where the first limit breaks, and of those within {TOLERANCE:.0%} of it "
        "the one that loses least quality, then the one with fewest settings changed"
    )


def _cost(inputs: RunInputs) -> str:
    if inputs.hardware.price is None:
        return ""
    return (
        "cost counts idle time; GPUs are billed for the window in which requests arrive where the limits are kept, "
        "otherwise to the last completion"
    )


def _dominance(inputs: RunInputs) -> str:
    if not inputs.objective.slos:
        return ""
    return "assumed: adding a replica never makes a limit harder to keep (candidates ruled out so are counted)"


def _stopped(found: Found) -> str:
    if found.stopped == "timeout":
        return "the search ended at its --timeout; --resume goes on"
    if found.stopped == "interrupted":
        return "the search was interrupted: the best so far is shown, capacities were not measured; --resume goes on"
    return ""


def quality(inputs: RunInputs, chosen: Trial | None) -> list[str]:
    """What the figures rest on where nothing was measured on the way."""
    if not inputs.objective.max_quality_drop and chosen is None:
        return []
    if inputs.quality is not None:
        known = f"quality is measured on this model for {', '.join(inputs.quality.schemes)} ({inputs.quality.file})"
        return [f"{known}; other schemes have figures from literature (assumed)"]
    return ["quality figures are from literature (assumed), not measured on this model; `fwopt quality` measures them"]


def _misses(inputs: RunInputs, found: Found, miss: Trial | None) -> list[str]:
    """What would have to give for the nearest miss to become a plan."""
    if miss is None:
        return ["no candidate could be simulated; the reasons are counted under rejected"]
    evaluation = ranking.evaluation_of(miss)
    if evaluation.feasible and not ranking.rests_on_assumptions(evaluation):
        return [f"{miss.candidate.label} keeps every limit but that of quality; see --max-quality-drop"]
    if evaluation.feasible:
        return [f"{miss.candidate.label} keeps every limit but rests on assumed operator times; see --allow-unmeasured"]
    open_limits = [r for r in evaluation.slos if not r.met]
    infinite = [r for r in open_limits if r.value_s is None]
    if infinite:
        refused = ", ".join(f"{count} requests ({reason})" for reason, count in evaluation.metrics.rejected.items())
        why = f"{refused or 'too many requests'} are refused, and a refused request never answers"
        return [f"even the nearest miss cannot keep {_names(infinite)}: {why}"]
    lines = ["to make the nearest miss a plan, relax " + " and ".join(_relaxed(r) for r in open_limits)]
    capacity = found.capacities.get(miss.candidate.id)
    if capacity is not None:
        lines.append(f"or serve {capacity.rate_scale:.2f} of the traffic: there it keeps every limit")
    elif found.stopped is None:
        lines.append(f"less traffic alone does not help: it misses a limit even at {FLOOR:.3g} of the rate")
    if miss.candidate.parallelism.gpus == inputs.hardware.count:
        lines.append("or use more GPUs: the nearest miss uses all that are at hand")
    return lines


def _relaxed(result: SloResult) -> str:
    """Two digits, rounded up."""
    assert result.value_s is not None
    step = 10 ** (math.floor(math.log10(result.value_s)) - 1)
    up = math.ceil(result.value_s / step * 1.001) * step
    return str(result.slo.model_copy(update={"limit_s": float(f"{up:.3g}")}))


def _names(results: list[SloResult]) -> str:
    return " and ".join(str(r.slo) for r in results)
