"""A job to its plan: the search, the run folder, the answer."""

from __future__ import annotations

import os
from collections.abc import Callable

from fwopt.search.dominance import Dominance
from fwopt.search.drift import with_slower_steps
from fwopt.search.evaluators import Evaluator, Screen
from fwopt.search.gate import QualityGate
from fwopt.search.job import Job
from fwopt.search.ladder import Ladder
from fwopt.search.ledger import Ledger
from fwopt.search.log import TrialLog
from fwopt.search.plan_builder import PlanBuilder
from fwopt.search.quality import estimate, graded
from fwopt.search.run_folder import RunInputs
from fwopt.search.stopping import Stopper
from fwopt.search.tuner import Found, Phase, Tuner
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Evaluation, Rejected, Trial
from fwopt.spec.plan import Plan


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def search(
    inputs: RunInputs,
    evaluator: Evaluator,
    screens: tuple[Screen, ...],
    baseline: Candidate | None,
    log: TrialLog,
    *,
    window_s: float,
    workers: int = 1,
    stopper: Stopper | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_phase: Callable[[Phase], None] = lambda phase: None,
    ledger: Ledger | None = None,
) -> Found:
    """Run the search over injected evaluators, recording into `log`. The last screens are those of quality, the last of
    all `ledger`'s where quality is measured on the way."""
    stopper = stopper or Stopper()
    gate = QualityGate.of(inputs, ledger)
    if ledger is not None:
        ledger.load()
        ledger.apply(log)

    def grade(candidate: Candidate, outcome: Evaluation | Rejected) -> Evaluation | Rejected:
        if outcome.kind == "rejected":
            return outcome
        return graded(outcome, estimate(candidate, inputs.model, ledger.measured if ledger else inputs.quality))

    ladder = Ladder(
        evaluator=evaluator,
        screens=(*screens, *gate.screens),
        dominance=Dominance(inputs.objective),
        log=log,
        workers=workers,
        stop=stopper,
        on_trial=on_trial,
        grade=grade,
    )

    def entered(phase: Phase) -> None:
        stopper.closing = phase == "capacity"
        on_phase(phase)

    tuner = Tuner(
        ladder=ladder,
        space=inputs.space,
        objective=inputs.objective,
        baseline=baseline,
        fixed_baseline=inputs.baseline is not None,
        seed=inputs.seed,
        budget=inputs.trials,
        window_s=window_s,
        gate=gate,
        allow_unmeasured=inputs.allow_unmeasured,
        on_phase=entered,
    )
    try:
        return tuner.run()
    finally:
        ladder.close()
        log.close()


def run_job(
    job: Job,
    log: TrialLog,
    *,
    workers: int | None = None,
    stopper: Stopper | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_phase: Callable[[Phase], None] = lambda phase: None,
    ledger: Ledger | None = None,
) -> Plan:
    found = search(
        job.inputs,
        job.evaluator,
        job.screens,
        job.baseline,
        log,
        window_s=job.traffic.workload.duration_s,
        workers=workers or cores(),
        stopper=stopper,
        on_trial=on_trial,
        on_phase=on_phase,
        ledger=ledger,
    )
    plan = PlanBuilder(job.inputs, job.traffic.workload.name, job.profile.name, found, job.notes, ledger).build()
    return with_slower_steps(plan, job.evaluator)
