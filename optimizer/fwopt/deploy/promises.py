"""What a deployment promises and how each number is known, as comment lines for the files that deploy it."""

from __future__ import annotations

from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Evaluation, GoalResult
from fwopt.spec.plan import Entry, Plan


def one_line(text: str) -> str:
    """A name from outside, fit for a comment: nothing in it can end the line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def promises(plan: Plan, entry: Entry) -> list[str]:
    """Lines without comment marks: the load, the limits, the goals, the quality, the edge."""
    found = entry.evaluation
    scale = "" if plan.rate_scale == 1 else f" at {plan.rate_scale:g} times its rate"
    lines = [
        f"Candidate {entry.candidate.id}: {_summary(entry.candidate)}",
        f"Promised for {one_line(plan.workload)}{scale}, {found.source}; {_evidence(found)}:",
    ]
    for result in found.slos:
        value = _seconds(result.value_s)
        lines.append(f"  {result.slo!s:<16} {value:>10}  {'kept' if result.met else 'NOT kept'}")
    lines += [f"  {goal.goal!s:<16} {_goal(goal):>10}" for goal in found.goals]
    if entry.capacity is not None:
        edge = entry.capacity
        limit = f", then {one_line(edge.limited_by)} breaks" if edge.limited_by else ""
        lines.append(
            f"  capacity         {edge.requests_per_s:10.4g} requests/s, {edge.rate_scale:.4g} times the trace{limit}"
        )
    if entry.quality is not None:
        q = entry.quality
        known = f"{q.known} ({one_line(q.source)})"
        lines.append(f"  quality          KL {q.kl:.3g} nats/token, top-1 {q.top1:.2%} against bf16: {known}")
    return lines


def _summary(candidate: Candidate) -> str:
    return f"{candidate.label}, router {candidate.router}"


def _evidence(found: Evaluation) -> str:
    """Shares of step time by how they are known, largest first; a share of nothing is not listed."""
    if found.source == "measured":
        return "on the hardware itself"
    shares = sorted(found.provenance.model_dump().items(), key=lambda item: -item[1])
    return "step times " + ", ".join(f"{share:.1%} {kind}" for kind, share in shares if share > 0)


def _seconds(value: float | None) -> str:
    if value is None:
        return "infinite"
    return f"{value:.4g} s" if value >= 1 else f"{value * 1e3:.4g} ms"


def _goal(result: GoalResult) -> str:
    if result.value is None:
        return "unknown"
    units = {"cost": "$ per 1M output tokens", "gpus": "GPUs", "throughput": "requests/s", "goodput": "requests/s"}
    units |= {"kl": "nats/token", "top1": "of tokens unchanged"}
    if result.goal.metric not in units:
        return _seconds(result.value)
    return f"{result.value:10.4g} {units[result.goal.metric]}"
