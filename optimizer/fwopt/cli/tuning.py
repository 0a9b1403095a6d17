"""What `fwopt tune` does, step by step: resolve, search, write, show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fwopt.cli.progress import Display
from fwopt.errors import InputError
from fwopt.search.job import Job, prepare, reopen, resolve_model
from fwopt.search.log import TrialLog
from fwopt.search.progress import Progress
from fwopt.search.run import run_job
from fwopt.search.run_folder import RunFolder
from fwopt.search.settings import COMMAND_LINE, Settings, load_settings, parse_engine, parse_settings
from fwopt.search.stopping import Stopper
from fwopt.search.traffic import load_traffic
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.plan import Plan

LIVE = {"live", "live_requests", "live_model"}
RESUMABLE = {"trace", "resume", "trials", "timeout", "workers", "json", "profiles", *LIVE}
"""Flags that may accompany --resume; everything else comes from the run."""


@dataclass(frozen=True, slots=True)
class Live:
    """The last rung: how many candidates are measured, on how much of the workload, with which weights."""

    candidates: int
    requests: int | None
    model: str | None

    @classmethod
    def of(cls, given: dict[str, Any]) -> Live | None:
        if "live" not in given:
            stray = sorted(LIVE & set(given))
            if stray and "profile" not in given:
                raise InputError(f"--{stray[0].replace('_', '-')} goes with --live N; add it, for example --live 3")
            return None
        return cls(given["live"], given.get("live_requests"), given.get("live_model"))


def merged(settings: Settings, given: dict[str, Any]) -> Settings:
    """Flags over the file. Limits and goals given on the command line replace the file's."""
    content = settings.model_dump(mode="json")
    for name in ("model", "hardware", "price", "engine", "rate_scale", "only_model", "trials", "seed"):
        if name in given:
            content[name] = given[name]
    if "timeout" in given:
        content["timeout_s"] = given["timeout"]
    if "allow_unmeasured" in given:
        content["allow_unmeasured"] = True
    for name in ("baseline", "calibration", "speculation"):
        if name in given:
            content[name] = str(given[name])
    objective = content["objective"]
    if "slo" in given:
        objective["slos"] = list(given["slo"])
    if "minimize" in given or "maximize" in given:
        objective["minimize"], objective["maximize"] = list(given.get("minimize", ())), list(given.get("maximize", ()))
    if "max_quality_drop" in given:
        objective["max_quality_drop"] = list(given["max_quality_drop"])
    if "measure_quality" in given:
        from fwopt.cli.quality_on_demand import by_kind

        content["measure_quality"] = (content["measure_quality"] or {}) | by_kind(given["measure_quality"])
    return parse_settings(content, COMMAND_LINE)


def start(trace: Path, given: dict[str, Any]) -> tuple[Job, RunFolder, float | None]:
    """A new run, and its time limit: everything is resolved and checked before the folder is touched."""
    settings = merged(load_settings(given.get("config")), given)
    force, out = "force" in given, given.get("out")
    RunFolder.check_free(out or Path("reports"), force=force, parent=out is None)
    traffic = load_traffic(
        trace,
        format=given.get("format"),
        skip_bad="skip_bad" in given,
        only_model=settings.only_model,
        rate_scale=settings.rate_scale,
    )
    model, note = resolve_model(settings, traffic)
    if "profile" in given:
        from fwopt.cli.profiling import run_missing

        requests = traffic.workload
        longest = int((requests.prompt_tokens + requests.output_tokens).max())
        place = (given.get("live_model"), given.get("profiles"))
        run_missing(settings.engine, model.name, settings.hardware, *place, longest)
    baseline, notes = _baseline(settings, model)
    measuring = None
    if settings.measure_quality is not None:
        from fwopt.cli.quality_on_demand import asked

        measuring = asked(settings, model)
    job = prepare(
        trace,
        settings,
        traffic,
        model,
        format=given.get("format"),
        skip_bad="skip_bad" in given,
        profiles=given.get("profiles"),
        baseline=baseline,
        notes=(*((note,) if note else ()), *notes),
        measuring=measuring,
    )
    folder = RunFolder.create(out or _default_folder(job), job.inputs, force=force)
    if force:
        from fwopt import deploy

        deploy.clear(folder.path / "deploy")
    return job, folder, settings.timeout_s


def _baseline(settings: Settings, model: ModelSpec) -> tuple[Candidate | None, list[str]]:
    """The user's current configuration, and what of it fwopt does not model."""
    if settings.baseline is None:
        return None, []
    from fwopt.deploy.vllm_config import read
    from fwopt.search.defaults import engine_defaults
    from fwopt.targets import load_hardware

    engine = parse_engine(settings.engine or EngineSpec().name)
    if engine.name != "vllm":
        raise InputError(f"--baseline reads vLLM configurations, not those of {engine.name}; leave it out")
    device = load_hardware(settings.hardware, settings.price).device
    config = read(settings.baseline, engine=engine, defaults=engine_defaults(device))
    notes = [f"baseline: {note}" for note in config.notes]
    if config.model is not None and config.model != model.name:
        notes.append(f"the baseline's file names the model {config.model}; it is evaluated with {model.name}")
    return config.for_model(model), notes


def _default_folder(job: Job) -> Path:
    """`reports/azure-qwen3-8b-h200x8`, numbered if taken."""
    inputs = job.inputs
    parts = [job.traffic.workload.name, inputs.model.name.rpartition("/")[2]]
    text = "-".join([*parts, f"{inputs.hardware.device.name}x{inputs.hardware.count}"])
    base = Path("reports") / re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def resume(run: Path, trace: Path | None, given: dict[str, Any]) -> tuple[Job, RunFolder, float | None]:
    other = sorted(set(given) - RESUMABLE)
    if other:
        flags = ", ".join("--" + name.replace("_", "-") for name in other)
        raise InputError(f"--resume takes its inputs from the run: leave out {flags}, or start a new run")
    folder, inputs = RunFolder.open(run)
    if "trials" in given:
        inputs = inputs.model_copy(update={"trials": given["trials"]})
    job = reopen(inputs, trace=trace, profiles=given.get("profiles"), folder=run)
    folder.write_inputs(inputs)
    return job, folder, given.get("timeout")


def run(
    job: Job, folder: RunFolder, *, workers: int | None, timeout_s: float | None, live: Live | None = None
) -> tuple[Plan, list[Path]]:
    """Search, measure the best on a real server where that was asked for, then write plan, deployment files and
    reports."""
    from fwopt import deploy, report

    stopper = Stopper(timeout_s)
    display = Display(Progress(job.inputs.trials, job.inputs.allow_unmeasured), stopper)
    log: TrialLog = folder.log()
    ledger = None
    if job.inputs.measuring is not None:
        from fwopt.cli.quality_on_demand import ledger_of

        ledger = ledger_of(job.inputs, folder, stopper, display.on_measure)
    with stopper.on_interrupt(), display.shown():
        plan = run_job(
            job, log, workers=workers, stopper=stopper, on_trial=display.on_trial, on_phase=display.on_phase,
            ledger=ledger,
        )  # fmt: skip
    folder.write_plan(plan)
    if live is not None and plan.status == "complete":
        plan = measured(job, plan, folder, live)
        folder.write_plan(plan)
    written = [*report.write(plan, log.trials, folder.path), *deploy.write(plan, folder.path / "deploy")]
    return plan, [*written, folder.plan_path]


def measured(job: Job, plan: Plan, folder: RunFolder, live: Live) -> Plan:
    """The best candidates and the baseline, replayed one after another on servers started from their own files. Where
    quality is measured, only those whose quality was: a measured time must not make up for it."""
    from fwopt.cli.verifying import shown
    from fwopt.verify.choosing import decide, finalists
    from fwopt.verify.session import Session, Where

    session = Session(job, plan, folder.path, Where(model=live.model), live.requests)
    with shown(session):
        trials = [
            session.measure(entry, again=False) for entry in finalists(_of_known_quality(job, plan), live.candidates)
        ]
    return decide(plan, trials)


def _of_known_quality(job: Job, plan: Plan) -> Plan:
    if job.inputs.measuring is None:
        return plan
    from fwopt.search.quality import measured_name

    known = {"", *(verdict.name for verdict in plan.schemes if verdict.status == "measured")}
    runners = tuple(e for e in plan.runners_up if measured_name(e.candidate, job.inputs.model) in known)
    return plan.model_copy(update={"runners_up": runners})


def show(plan: Plan, folder: RunFolder, written: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        typer.echo(plan.model_dump_json(indent=2))
        return
    from rich.console import Console

    from fwopt.report.terminal import render

    render(plan, folder.log().trials, Console(highlight=False), files=written)


def why_nothing(plan: Plan) -> str:
    """One line: the nearest miss, and what would have to give."""
    if plan.nearest_miss is None:
        reasons = "; ".join(f"{r.reason} ({r.count})" for r in plan.rejected[:3])
        example = f", for example {plan.rejected[0].example}" if plan.rejected else ""
        return f"no deployment of {plan.model.name} can run: {reasons}{example}"
    what = next(
        (
            note
            for note in plan.notes
            if note.startswith(("to make", "even the nearest", plan.nearest_miss.candidate.label))
        ),
        "",
    )
    missed = [r for r in plan.nearest_miss.evaluation.slos if not r.met]
    found = ", ".join(f"{r.slo} (found {_shown(r.value_s)})" for r in missed)
    return f"nothing keeps {found or 'the objective'}; nearest: {plan.nearest_miss.candidate.label}; {what}"


def _shown(value_s: float | None) -> str:
    from fwopt.search.notes import seconds

    return seconds(value_s)
