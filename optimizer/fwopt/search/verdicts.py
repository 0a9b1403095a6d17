"""Of which schemes the quality was measured during a search, and why of no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fwopt.search import ranking
from fwopt.search.ledger import Ledger
from fwopt.search.progress import goal_text
from fwopt.search.tuner import Found
from fwopt.spec.outcome import Trial
from fwopt.spec.quality import SchemeVerdict


def scheme_verdicts(
    ledger: Ledger, found: Found, eligible: Sequence[Trial], chosen: Trial | None
) -> tuple[SchemeVerdict, ...]:
    """One for every scheme that the search came across, in order of name."""
    at_load = [t for t in found.trials if t.rate_scale == 1.0]
    names = {ledger.name(t.candidate) for t in at_load} - {""} | set(ledger.asked_by)
    return tuple(_verdict(name, ledger, found, at_load, eligible, chosen) for name in sorted(names))


def _verdict(
    name: str, ledger: Ledger, found: Found, at_load: Sequence[Trial], eligible: Sequence[Trial], chosen: Trial | None
) -> SchemeVerdict:
    if name in ledger.failed:
        return SchemeVerdict(name=name, status="failed", says=ledger.failed[name])
    if ledger.measured is not None and name in ledger.measured.schemes:
        cost, by = ledger.measured.schemes[name], ledger.asked_by[name]
        return SchemeVerdict(name=name, status="measured", cost=cost, says=f"{by} could have won")
    mine = [t for t in eligible if ledger.name(t.candidate) == name]
    if found.stopped is not None and mine:
        return SchemeVerdict(name=name, status="not measured", says="the search was stopped before")
    own = [t for t in at_load if ledger.name(t.candidate) == name]
    return SchemeVerdict(name=name, status="not needed", says=_behind(mine, chosen) if mine else _fell(own))


def _behind(mine: Sequence[Trial], chosen: Trial | None) -> str:
    """Why the best of a scheme cannot win, however little it loses."""
    best = ranking.evaluation_of(min(mine, key=ranking.order))
    if chosen is None or len(best.goals) > 1:
        return "another candidate is better by every goal, however little this one loses"
    here, there = best.goals[0], ranking.evaluation_of(chosen).goals[0]
    mine_text, chosen_text = (goal_text(r.goal, r.value) for r in (here, there))
    return f"its best candidate has {mine_text}, the chosen one {chosen_text}"


def _fell(own: Sequence[Trial]) -> str:
    """Why none of its candidates could be chosen, whatever its quality."""
    if all(t.outcome.kind == "rejected" for t in own):
        rungs = Counter(t.outcome.rung for t in own if t.outcome.kind == "rejected")
        return f"none of its candidates was worth simulating ({rungs.most_common(1)[0][0]})"
    evaluated = [t for t in own if t.outcome.kind == "evaluation"]
    if any(ranking.evaluation_of(t).feasible for t in evaluated):
        return "it keeps the limits on assumed operator times alone"
    return "none of its candidates keeps the limits"


def told(verdicts: Sequence[SchemeVerdict], ledger: Ledger) -> list[str]:
    """Sentences for the plan."""
    if not verdicts:
        return ["quality was to be measured, and no candidate gives any up: nothing was measured"]
    lines = []
    measured = [v for v in verdicts if v.status == "measured"]
    if measured and ledger.measured is not None:
        said = ", ".join(f"{v.name} (KL {v.cost.kl:.3g}, top-1 {v.cost.top1:.1%})" for v in measured if v.cost)
        where = f"on {ledger.measured.tokens:,} tokens of {', '.join(ledger.measured.text)}: {ledger.measured.file}"
        lines.append(f"quality was measured on this model for {said}, {where}")
    lines += [f"quality of {v.name} could not be measured, so nothing with it is chosen: {v.says}"
              for v in verdicts if v.status == "failed"]  # fmt: skip
    for status, rest in (("not needed", "figures from literature (assumed)"), ("not measured", "assumed")):
        others = [f"{v.name} ({v.says})" for v in verdicts if v.status == status]
        if others:
            lines.append(f"quality {status} for {', '.join(others)}; shown are {rest}")
    return lines
