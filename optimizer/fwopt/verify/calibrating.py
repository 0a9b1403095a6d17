"""Measured runs -> a calibration of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fwopt.errors import InputError
from fwopt.live import Replay
from fwopt.perf.machine import MachineCalibration
from fwopt.search.job import Job
from fwopt.spec.verification import Verification
from fwopt.verify.fitting import Observed, as_factors, errors, fit, unhindered
from fwopt.verify.judging import offered
from fwopt.verify.metrics import STANDARD, figures
from fwopt.verify.promise import Promise, sent_at
from fwopt.verify.session import REPLAY, VERIFICATION, read_verification
from fwopt.workload.select import window


@dataclass(frozen=True, slots=True)
class Measured:
    """One valid live replay of a run folder."""

    job: Job
    verification: Verification
    replay: Replay


def measured_in(folder: Path, job: Job) -> list[Measured]:
    """Valid live replays below `folder`; none is an error: there is nothing to learn from."""
    found = []
    for path in sorted((folder / "live").glob(f"*/{VERIFICATION}")):
        verification = read_verification(path)
        if verification.valid and verification.measured.finished:
            found.append(Measured(job, verification, Replay.load(path.with_name(REPLAY))))
    if not found:
        raise InputError(f"{folder} holds no valid live replay; run `fwopt verify {folder}` first")
    return found


def calibrate(runs: Sequence[Measured]) -> MachineCalibration:
    """Factors that all runs share; they must be of one device type and engine."""
    first = runs[0].job.inputs
    for run in runs:
        inputs = run.job.inputs
        if (inputs.hardware.device.name, inputs.engine) != (first.hardware.device.name, first.engine):
            raise InputError(
                f"runs must be of one device and engine, got {first.engine.name} {first.engine.version} on "
                f"{first.hardware.device.name} and {inputs.engine.name} {inputs.engine.version} on "
                f"{inputs.hardware.device.name}; calibrate them apart"
            )
    seen = [_observed(run) for run in runs]
    theta = fit(seen)
    decode, prefill, request_s = as_factors(theta)
    return MachineCalibration(
        hardware=first.hardware.device.name,
        engine=first.engine,
        decode=round(decode, 4),
        prefill=round(prefill, 4),
        request_s=round(request_s, 6),
        fitted_on=tuple(_told(run.verification) for run in runs),
        error_before=errors(seen, np.zeros(3)),
        error_after=errors(seen, theta),
    )


def _observed(run: Measured) -> Observed:
    """The stretch as it was really sent, cached prompt tokens as the server told them."""
    promise = Promise.of(run.job.evaluator, run.verification.candidate, STANDARD)
    part, records = run.verification.slice, run.replay.records
    stretch = window(run.job.traffic.workload, part.start, part.stop)
    if stretch.digest != part.digest:
        raise InputError(f"{run.verification.workload}: the replayed stretch is not in this trace; name its own trace")
    workload, order = sent_at(offered(stretch, run.replay), records.arrival_s)
    cached = records.cached_tokens[order] if (run.replay.rows.cached_usage >= 0).any() else None
    measured = {name: value for name, value in figures(records, STANDARD).items() if value is not None}
    batching, parallelism = run.verification.candidate.batching, run.verification.candidate.parallelism
    alone = unhindered(records, batching.max_num_seqs * parallelism.dp * parallelism.replicas)
    first = records.first_token_s - records.arrival_s
    return Observed(promise, workload, measured, first[order], alone[order], cached)


def _told(found: Verification) -> str:
    return f"{found.made_at} {found.workload} {found.model} {found.candidate.label}: {found.sending.requests} requests"
