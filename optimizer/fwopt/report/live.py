"""What real servers did with the candidates: one row a live replay, measured beside promised."""

from __future__ import annotations

from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.spec.plan import LiveTrial, Plan
from fwopt.spec.verification import Check

SHOWN = ("ttft:p50", "ttft:p90", "tpot:p50", "tpot:p90", "throughput")
HEAD = ("candidate", *SHOWN, "goal", "limits")


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]
    """As `HEAD` names them; each figure measured, with its difference from the promise."""
    chosen: bool
    trial: LiveTrial


def rows(plan: Plan) -> list[Row]:
    return [Row(_cells(plan, t), _is_chosen(plan, t), t) for t in plan.live]


def _is_chosen(plan: Plan, trial: LiveTrial) -> bool:
    return plan.chosen is not None and plan.chosen.candidate.id == trial.candidate.id


def _cells(plan: Plan, trial: LiveTrial) -> tuple[str, ...]:
    baseline = plan.baseline is not None and plan.baseline.candidate.id == trial.candidate.id
    name = trial.candidate.label + (" (baseline)" if baseline else "")
    if trial.outcome.kind == "rejected" or trial.verification is None:
        why = trial.outcome.reason if trial.outcome.kind == "rejected" else "not measured"
        return (name, f"did not serve: {f.plain(why)}", *[""] * (len(HEAD) - 2))
    checks = {c.metric: c for c in trial.verification.checks}
    goals = ", ".join(f.NONE if g.value is None else f.goal_value(g.goal.metric, g.value) for g in trial.outcome.goals)
    kept = [r for r in trial.outcome.slos if r.met]
    limits = f"{len(kept)} of {len(trial.outcome.slos)} kept" if trial.outcome.slos else f.NONE
    limits = limits if trial.verification.valid else "run does not count"
    return (name, *(figure(checks.get(metric)) for metric in SHOWN), goals or f.NONE, limits)


def figure(check: Check | None) -> str:
    """`41.2 ms (+3.1%)`: measured, and how far from the promise."""
    if check is None or check.measured is None:
        return f.NONE
    value = f.seconds(check.measured) if check.unit == "s" else f.rate(check.measured)
    return value if check.error is None else f"{value} ({check.error:+.1%})"


def basis(plan: Plan) -> str:
    """On what the rows rest."""
    first = next((t.verification for t in plan.live if t.verification is not None), None)
    if first is None:
        return "no server was measured"
    s = first.slice
    return (
        f"{s.stop - s.start:,} of {s.requests:,} requests replayed on a real server each; "
        "in brackets the difference from what the simulation promised for them"
    )
