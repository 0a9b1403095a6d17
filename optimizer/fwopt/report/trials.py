"""The rows of the trials table: what each trial achieved, or why it fell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fwopt.report import format as f
from fwopt.report.comparison import result_of, room
from fwopt.report.front import entries
from fwopt.spec.outcome import Evaluation, Rejected, SloResult, Trial
from fwopt.spec.plan import Plan
from fwopt.spec.provenance import ProvenanceShares

MAX_ROWS = 300
"""More would make the file too large to mail; what is left out is counted, and lies in trials.jsonl."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    number: int
    label: str
    candidate_id: str
    what: str
    """chosen, baseline, unmeasured, nearest miss, or nothing."""
    standing: str
    """`met`, `missed` or `fell`."""
    result: str
    gpus: int
    values: tuple[tuple[str, float | None], ...]
    """One per SLO, then dollars per 1M output tokens at this traffic: (text, sort key)."""
    shares: ProvenanceShares | None


def listed(plan: Plan, trials: Sequence[Trial]) -> tuple[list[TrialRow], int]:
    """Rows of all trials, named ones first, then those that met, missed and fell; and how many rows are left out.

    Capacity probes ran at other rates: they belong to no comparison and are not rows.
    """
    named = {e.candidate.id: i for i, e in enumerate(entries(plan))}
    own = [t for t in trials if t.role != "capacity"]

    def rank(trial: Trial) -> tuple[int, int, int]:
        fell = trial.outcome.kind == "rejected"
        feasible = isinstance(trial.outcome, Evaluation) and trial.outcome.feasible
        return (named.get(trial.candidate.id, len(named)), 2 if fell else 0 if feasible else 1, trial.number)

    ordered = sorted(own, key=rank)
    return [_row(plan, t) for t in ordered[:MAX_ROWS]], max(0, len(ordered) - MAX_ROWS)


def reason(outcome: Rejected) -> str:
    """`memory: weights do not fit (need 160 GiB, have 129 GiB)`."""
    text = f"{outcome.rung}: {f.plain(outcome.reason)}"
    if outcome.need is None and outcome.have is None:
        return text
    return f"{text} (need {f.quantity(outcome.need, outcome.unit)}, have {f.quantity(outcome.have, outcome.unit)})"


def role(plan: Plan, candidate_id: str) -> str:
    """What the plan calls a candidate; empty for one among many."""
    for name, found in (("chosen", plan.chosen), ("baseline", plan.baseline), ("nearest miss", plan.nearest_miss)):
        if found is not None and found.candidate.id == candidate_id:
            return name
    return "unmeasured" if candidate_id in {e.candidate.id for e in plan.unmeasured} else ""


def _row(plan: Plan, trial: Trial) -> TrialRow:
    outcome, candidate = trial.outcome, trial.candidate
    if isinstance(outcome, Rejected):
        empty = tuple((f.NONE, None) for _ in range(len(plan.objective.slos) + 1))
        return TrialRow(trial.number, candidate.label, candidate.id, role(plan, candidate.id), "fell", reason(outcome),
                        candidate.parallelism.gpus, empty, None)  # fmt: skip
    missed = [r for r in outcome.slos if not r.met]
    result = "keeps every SLO" if outcome.feasible else "; ".join(f"{f.slo_name(r.slo)} {room(r)}" for r in missed)
    values = [_slo_value(result_of(outcome, SloResult(slo=s, value_s=None, met=False))) for s in plan.objective.slos]
    usd = outcome.cost.usd_per_1m_output_tokens if outcome.cost else None
    return TrialRow(trial.number, candidate.label, candidate.id, role(plan, candidate.id),
                    "met" if outcome.feasible else "missed", result, candidate.parallelism.gpus,
                    (*values, (f.usd(usd), usd)), outcome.provenance)  # fmt: skip


def _slo_value(result: SloResult | None) -> tuple[str, float | None]:
    return (f.NONE, None) if result is None else (f.seconds(result.value_s), result.value_s)
