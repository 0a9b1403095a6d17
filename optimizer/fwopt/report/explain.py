"""Why one candidate was chosen or fell, with the evidence for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fwopt.errors import InputError, UnknownNameError
from fwopt.report import format as f
from fwopt.report.comparison import rows
from fwopt.report.facts import baseline_name, known, slo_text, unit_price
from fwopt.report.front import entries
from fwopt.report.give import what_would_give
from fwopt.report.ladder import MEANING
from fwopt.report.settings import differences, settings
from fwopt.report.trials import role
from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import Goal
from fwopt.spec.outcome import Evaluation, Rejected, Trial
from fwopt.spec.plan import Entry, Plan

_MIN_ID = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """What is explained; `entry` where the plan or an evaluation promises something, else `rejected`."""

    candidate: Candidate
    trial: int | None
    entry: Entry | None
    rejected: Rejected | None


def find(plan: Plan, trials: Sequence[Trial], which: str) -> Subject:
    """`chosen`, `baseline`, `nearest`, a trial number (`#17` or `17`), or an id (its first digits are enough)."""
    names = {"chosen": plan.chosen, "baseline": plan.baseline, "nearest": plan.nearest_miss}
    own = [t for t in trials if t.role != "capacity"]
    if which in names:
        entry = names[which]
        if entry is None:
            there = [name for name, e in names.items() if e is not None]
            offer = f"; this one has {f.listing(there)}" if there else ""
            raise InputError(f"the plan has no '{which}' (status {plan.status}){offer}")
        return _subject(plan, own, entry.candidate)
    number = which.removeprefix("#")
    if number.isdecimal() and (which.startswith("#") or len(number) <= _MIN_ID + 1):
        found = next((t for t in trials if t.number == int(number)), None)
        if found is None:
            last = max((t.number for t in trials), default=0)
            raise InputError(f"there is no trial #{number}; trials run from #0 to #{last}")
        return _subject(plan, own, found.candidate)
    candidates = {c.id: c for c in [*(t.candidate for t in trials), *(e.candidate for e in entries(plan))]}
    matches = [i for i in candidates if i.startswith(which.lower())] if len(which) >= _MIN_ID else []
    if len(matches) > 1:
        raise InputError(f"'{which}' begins {len(matches)} ids, for example {f.listing(matches[:3])}; give more digits")
    if not matches:
        raise UnknownNameError(
            "candidate", which, [n for n, e in names.items() if e], "a trial number such as '#17', or an id"
        )
    return _subject(plan, own, candidates[matches[0]])


def _subject(plan: Plan, trials: Sequence[Trial], candidate: Candidate) -> Subject:
    trial = next((t for t in trials if t.candidate.id == candidate.id), None)
    entry = next((e for e in entries(plan) if e.candidate.id == candidate.id), None)
    if entry is None and trial is not None and isinstance(trial.outcome, Evaluation):
        entry = Entry(candidate=candidate, evaluation=trial.outcome)
    rejected = trial.outcome if trial is not None and isinstance(trial.outcome, Rejected) and entry is None else None
    return Subject(candidate, trial.number if trial else None, entry, rejected)


def reasons(plan: Plan, subject: Subject) -> list[str]:
    """Why, one sentence each, the deciding one first."""
    if subject.rejected is not None:
        return _fell(subject.rejected)
    if subject.entry is None:
        return ["It was never evaluated."]
    said = role(plan, subject.candidate.id)
    missed = [r for r in subject.entry.evaluation.slos if not r.met]
    if said == "chosen":
        return _chosen(plan, subject.entry)
    if said == "nearest miss":
        why = f.listing(slo_text(r) for r in missed)
        ways = [f"To give: {way}." for way in what_would_give(plan, subject.entry)]
        return [f"Nothing meets the objective; this comes closest: {why}.", *ways]
    found = [f"It is the baseline: {baseline_name(plan)}."] if said == "baseline" else []
    if missed:
        return [*found, *(f"It misses a limit: {slo_text(r)}." for r in missed)]
    if said == "unmeasured":
        share = f.percent(subject.entry.evaluation.provenance.assumed)
        rests = f"{share} of its GPU time rests on assumed operator times"
        return [f"It is as good as the chosen one or better, but {rests}; --allow-unmeasured lets it be chosen."]
    return [*found, *_behind(plan, subject.entry)]


def _fell(rejected: Rejected) -> list[str]:
    meaning = MEANING.get(rejected.rung, "rejected")
    said = [f"It fell at the rung '{rejected.rung}' ({meaning}): {f.plain(rejected.reason)}."]
    if rejected.need is not None or rejected.have is not None:
        need, have = f.quantity(rejected.need, rejected.unit), f.quantity(rejected.have, rejected.unit)
        said.append(f"Need {need}, have {have}.")
    if rejected.rung == "quality" and "measured" in rejected.reason:
        return said  # it may have been simulated before its quality was measured
    return [*said, "It was not simulated, so it has no latencies."]


def _chosen(plan: Plan, entry: Entry) -> list[str]:
    goals = f.listing(str(g) for g in plan.objective.goals)
    kept = "It keeps every SLO and" if entry.evaluation.slos else "It"
    said = [f"{kept} is the best found for: {goals}."]
    if plan.runners_up:
        second = plan.runners_up[0]
        said.append(f"Next best: {second.candidate.label} at {unit_price(second)}, against {unit_price(entry)} "
                    "(dollars per 1M output tokens, c at SLO capacity, t at this traffic)."
                    if second.evaluation.cost else f"Next best: {second.candidate.label}.")  # fmt: skip
    if plan.status == "interrupted":
        said.append("The search was interrupted: best so far, not of the whole space.")
    return said


def _behind(plan: Plan, entry: Entry) -> list[str]:
    """It keeps every SLO, yet another one was chosen."""
    if plan.chosen is None:
        return ["It keeps every SLO, but falls short of the rest of the objective."]
    said = []
    best = plan.chosen.evaluation
    for goal in plan.objective.goals:
        here, there = _goal(entry.evaluation, goal), _goal(best, goal)
        difference = f.change(here, there)
        if here is not None and there is not None and difference is not None:
            how = f"{difference} as" if difference == "the same" else f"{difference} than"
            values = f"{_shown(goal, here)}, {how} the chosen one's {_shown(goal, there)}"
            said.append(f"It keeps every SLO; {goal}: {values}.")
    assumed = entry.evaluation.provenance.assumed
    if assumed > 0 and best.provenance.assumed == 0:
        said.append(f"{f.percent(assumed)} of its GPU time is assumed; not chosen without --allow-unmeasured.")
    if entry.candidate.id in {e.candidate.id for e in plan.pareto}:
        said.append("It is on the Pareto front: better than the chosen one on one axis, worse on another.")
    if said and all("the same" in s for s in said):
        here_s, there_s = entry.evaluation.slack, best.slack
        if here_s is not None and there_s is not None:
            said.append(f"It uses {f.percent(here_s)} of its tightest limit, the chosen one {f.percent(there_s)}.")
    mine, theirs = entry.capacity, plan.chosen.capacity
    if mine is not None and theirs is not None:
        edges = f.factor(mine.rate_scale), f.factor(theirs.rate_scale)
        said.append(f"SLO capacity: {edges[0]} this traffic, the chosen one's {edges[1]}.")
    return said or ["It keeps every SLO, but is not better than the chosen one."]


def _goal(evaluation: Evaluation, goal: Goal) -> float | None:
    return next((g.value for g in evaluation.goals if g.goal == goal), None)


def _shown(goal: Goal, value: float) -> str:
    return f.plural(round(value), "GPU") if goal.metric == "gpus" else f.goal_value(goal.metric, value)


def render(plan: Plan, trials: Sequence[Trial], which: str, console: Console) -> None:
    """Print why, then the numbers beside the chosen ones, the settings that differ and how it is known."""
    subject = find(plan, trials, which)
    said = role(plan, subject.candidate.id)
    number = f"trial #{subject.trial}" if subject.trial is not None else "not among the trials"
    style = "bold green" if said == "chosen" else "bold cyan"
    named = (f"  {said}" if said else "", style)
    title = ((subject.candidate.label, "bold"), (f"  {subject.candidate.id}, {number}", "dim"), named)
    console.print(Text.assemble(*title))
    for reason in reasons(plan, subject):
        console.print(Text(f"  {reason}"))
    other = plan.chosen or plan.baseline
    if other is not None and other.candidate.id == subject.candidate.id:
        other = plan.baseline if said != "baseline" else None
    other_name = role(plan, other.candidate.id) if other else ""
    if subject.entry is not None:
        console.print(_numbers(subject.entry, other, other_name))
        how = f"{known(subject.entry.evaluation)}; profile {f.plain(plan.profile)}"
        console.print(Text(f"How the latencies are known: {how}"))
    console.print(_settings(subject.candidate, other, other_name))


def _numbers(entry: Entry, other: Entry | None, name: str) -> Table:
    shown = [entry, other] if other is not None and other.candidate.id != entry.candidate.id else [entry]
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("", style="dim", overflow="fold", max_width=36)
    grid.add_column("limit", justify="right", no_wrap=True)
    grid.add_column("this one", overflow="fold")
    if len(shown) > 1:
        grid.add_column(name, overflow="fold")
    for row in rows([e for e in shown if e is not None]):
        styles = ["" if m is None else "green" if m else "red" for m in row.met]
        cells = [Text(v, style=s) for v, s in zip(row.values, styles, strict=True)]
        grid.add_row(Text(row.name), Text(row.limit), *cells)
    return grid


def _settings(candidate: Candidate, other: Entry | None, name: str) -> Text:
    if other is None or other.candidate.id == candidate.id:
        return Text("Settings: " + "; ".join(f"{k} {v}" for k, v in settings(candidate).items()))
    changed = [f"{s.name} {s.here} ({name}: {s.there})" for s in differences(candidate, other.candidate)]
    return Text(f"Against the {name}: {'; '.join(changed) or 'the same settings'}")
