"""The last rung: which candidates are measured on a real server, and which one wins there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fwopt.search.ranking import losses
from fwopt.spec.outcome import Evaluation
from fwopt.spec.plan import Entry, LiveTrial, Plan

TIE = 0.03
"""Measured goal values nearer than this are a tie, and the simulation's order decides: what repeats of one
configuration differ by."""


def finalists(plan: Plan, count: int) -> list[Entry]:
    """Up to `count` entries, the plan's own order: first the best of each precision and layout, then the rest; the
    baseline besides, last, unless it is among them."""
    ranked = [entry for entry in (plan.chosen, *plan.runners_up) if entry is not None]
    first: list[Entry] = []
    rest: list[Entry] = []
    seen: set[tuple[str, str, str]] = set()
    for entry in ranked:
        c = entry.candidate
        one = c.parallelism.model_copy(update={"replicas": 1})
        key = (c.quantization.content_hash(), c.kv_dtype, one.content_hash())
        (rest if key in seen else first).append(entry)
        seen.add(key)
    picked = (first + rest)[:count]
    base = plan.baseline
    if base is not None and all(entry.candidate.id != base.candidate.id for entry in picked):
        picked.append(base)
    return picked


def decide(plan: Plan, trials: Sequence[LiveTrial]) -> Plan:
    """The plan with what was measured, and the candidate that measured best: limits kept first, then the first goal;
    ties keep the simulation's order. Without a valid measurement the choice stands."""
    sound = [
        t for t in trials if t.verification is not None and t.verification.valid and t.outcome.kind == "evaluation"
    ]
    ranked = {
        entry.candidate.id: entry for entry in (plan.chosen, *plan.runners_up, plan.baseline) if entry is not None
    }
    eligible = [t for t in sound if t.candidate.id in ranked]
    best = _best(eligible)
    notes = [*plan.notes, *_told(plan, trials, best)]
    if best is None:
        return plan.model_copy(update={"live": tuple(trials), "notes": tuple(notes)})
    others = [e for e in (plan.chosen, *plan.runners_up) if e is not None and e.candidate.id != best.candidate.id]
    return plan.model_copy(
        update={
            "chosen": ranked[best.candidate.id],
            "runners_up": tuple(others),
            "live": tuple(trials),
            "chosen_by": "measurement",
            "notes": tuple(notes),
        }
    )


def _counts(trial: LiveTrial) -> bool:
    return trial.outcome.kind == "evaluation" and trial.verification is not None and trial.verification.valid


def _best(trials: Sequence[LiveTrial]) -> LiveTrial | None:
    kept = [t for t in trials if _evaluation(t).feasible] or list(trials)
    if not kept:
        return None
    first = [losses(_evaluation(t))[0] if _evaluation(t).goals else 0.0 for t in kept]
    least = min(first)
    if not math.isfinite(least):
        return None
    return next(t for t, loss in zip(kept, first, strict=True) if loss <= least + abs(least) * TIE)


def _evaluation(trial: LiveTrial) -> Evaluation:
    assert trial.outcome.kind == "evaluation"
    return trial.outcome


def _told(plan: Plan, trials: Sequence[LiveTrial], best: LiveTrial | None) -> list[str]:
    """What a reader must know of the last rung."""
    told = []
    for t in trials:
        if t.outcome.kind == "rejected":
            told.append(f"live: {t.candidate.label} did not serve: {t.outcome.reason}")
        elif t.verification is not None and not t.verification.valid:
            told.append(f"live: the run of {t.candidate.label} does not count: {'; '.join(t.verification.problems)}")
    if best is None:
        return [*told, "live: nothing was measured that counts; the choice is the simulation's"]
    if not _evaluation(best).feasible:
        told.append("live: no measured candidate kept every limit on the slice; the best of them is shown")
    if plan.chosen is not None and plan.chosen.candidate.id != best.candidate.id:
        before = plan.chosen.candidate.label
        told.append(f"live: measurement chose {best.candidate.label}; the simulation had preferred {before}")
    return told
