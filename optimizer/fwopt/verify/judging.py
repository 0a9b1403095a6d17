"""From a replay to a verdict: metrics measured beside promised, limits kept or not on what was measured."""

from __future__ import annotations

import platform
from datetime import UTC, datetime

import numpy as np

from fwopt import __version__
from fwopt.live import Replay
from fwopt.metrics.records import Records
from fwopt.metrics.summary import held_to, summarize
from fwopt.search.job import Job
from fwopt.search.scoring import EngineFacts, evaluate_metrics
from fwopt.spec.outcome import Evaluation
from fwopt.spec.plan import Plan
from fwopt.spec.provenance import ProvenanceShares
from fwopt.spec.verification import Check, Sending, Verification
from fwopt.verify.causes import explain
from fwopt.verify.metrics import THROUGHPUT
from fwopt.verify.metrics import figures as figures_of
from fwopt.verify.promise import Promise
from fwopt.verify.slices import Chosen
from fwopt.workload.columns import Workload
from fwopt.workload.select import keep_requests


def verification(plan: Plan, promise: Promise, stretch: Chosen, run: Replay, version: str | None) -> Verification:
    """Hold a replay against the simulation of the same requests."""
    workload, records = offered(stretch.workload, run), run.records
    cached_known = bool((run.rows.cached_usage >= 0).any())
    explained = explain(promise, workload, records, records.arrival_s, cached_known=cached_known)
    expected = promise.records(workload)
    whole, promised = promise.figures(promise.evaluator.workload), figures_of(expected, promise.pairs)
    measured = figures_of(records, promise.pairs)
    checks = tuple(
        Check(
            metric=name,
            unit="tokens/s" if name == THROUGHPUT else "s",
            promised_whole=whole[name],
            promised=promised[name],
            measured=measured[name],
            error=_relative(measured[name], promised[name]),
            causes=explained.causes[name],
        )
        for name in measured
    )
    lag = run.send_lag
    slos = promise.evaluator.objective.slos
    return Verification(
        fwopt_version=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=plan.workload,
        workload_digest=promise.evaluator.workload.digest,
        model=plan.model.name,
        hardware=plan.hardware.device.name,
        engine=plan.engine,
        server_version=version,
        candidate=promise.candidate,
        plan=plan.content_hash(),
        slice=stretch.slice,
        cache=run.cache.how,
        valid=run.valid,
        problems=tuple(str(problem) for problem in run.problems),
        checks=checks,
        measured=summarize(records, slos),
        promised=summarize(expected, slos),
        sending=Sending(requests=len(records), lag_p50_s=lag.p50_s, lag_p99_s=lag.p99_s, lag_max_s=lag.max_s),
        step_factor=explained.step_factor,
        environment={"machine": platform.platform(), **run.header.environment.packages},
    )


def offered(workload: Workload, run: Replay) -> Workload:
    """The requests that the run came to, at their own times."""
    if len(run.offered) == len(workload):
        return workload
    keep = np.zeros(len(workload), dtype=np.bool_)
    keep[run.offered] = True
    return keep_requests(workload, keep)


def evaluate(found: Verification, job: Job, run: Replay) -> Evaluation:
    """The objective judged on what was measured, over the stretch."""
    records: Records = run.records
    nothing = EngineFacts(
        provenance=ProvenanceShares(measured=1.0), kv_blocks_per_replica=0, peak_kv_blocks=0, mean_batch=0.0,
        busy_share=0.0,
    )  # fmt: skip
    evaluation = evaluate_metrics(
        found.candidate,
        found.measured,
        lambda metric, which: held_to(records, metric, which),
        nothing,
        objective=job.inputs.objective,
        hardware=job.inputs.hardware,
        window_s=float(np.ptp(records.arrival_s)) if len(records) else 0.0,
    )
    return evaluation.model_copy(update={"source": "measured"})


def _relative(value: float | None, reference: float | None) -> float | None:
    return value / reference - 1 if value is not None and reference else None
