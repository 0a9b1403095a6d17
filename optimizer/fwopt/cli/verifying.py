"""What `fwopt verify`, `fwopt tune --live` and `fwopt calibrate` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fwopt.cli.counting import counting
from fwopt.errors import FwoptError, InputError
from fwopt.search.job import Job, reopen
from fwopt.search.run_folder import read_inputs, read_plan
from fwopt.spec.plan import Entry, LiveTrial, Plan
from fwopt.spec.verification import Verification
from fwopt.verify.session import Session, Where


class NotServedError(FwoptError):
    """The candidate's server did not come up, or went away."""


def parse_percent(text: str | None) -> float | None:
    """`15%` or `15` -> 0.15."""
    if text is None:
        return None
    try:
        value = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise InputError(f"--within must be a percentage above zero, for example 15%, got '{text}'")
    return value


def where(server: str | None, served_model: str | None, model: str | None, tokenizer: Path | None) -> Where:
    """The server that is there, or how to start one."""
    if tokenizer is not None and not tokenizer.exists():
        raise InputError(f"{tokenizer}: no such tokenizer; name a tokenizer.json or its folder")
    if server is None:
        if served_model is not None:
            raise InputError("--served-model goes with --server; a server that is started here has a name of its own")
        return Where(model=model, tokenizer=tokenizer)
    if model is not None:
        raise InputError("--model names weights to start a server with; with --server leave it out")
    from fwopt.live.servers.attached import AttachedServer

    attached = AttachedServer(server, model=served_model)
    endpoint = attached.start()
    return Where(endpoint, attached.identity.version if attached.identity else None, tokenizer=tokenizer)


def open_session(
    run: Path, trace: Path | None, *, profiles: Path | None, requests: int | None, where: Where
) -> Session:
    """The run's own job again, on its own traffic."""
    plan = read_plan(run)
    folder = run if run.is_dir() else run.parent
    job: Job = reopen(read_inputs(folder), trace=trace, profiles=profiles, folder=folder)
    return Session(job, plan, folder, where, requests)


def entry_of(plan: Plan, which: str) -> Entry:
    """`chosen`, `baseline`, or the only entry whose id begins so."""
    if which == "chosen":
        entry = plan.chosen or plan.nearest_miss
    elif which == "baseline":
        entry = plan.baseline
    else:
        known = [e for e in (plan.chosen, plan.baseline, plan.nearest_miss, *plan.runners_up, *plan.pareto) if e]
        found = {e.candidate.id: e for e in known if e.candidate.id.startswith(which)}
        if len(found) > 1:
            raise InputError(f"--which {which}: is the start of {len(found)} candidates' ids; write more of it")
        entry = next(iter(found.values()), None)
    if entry is None:
        raise InputError(
            f"--which {which}: the plan holds no such deployment; name chosen, baseline, or the start of an id that "
            "`fwopt report` shows"
        )
    return entry


@contextmanager
def shown(session: Session) -> Iterator[None]:
    """What is going on, on stderr."""
    with counting(every_s=60.0) as session.progress:
        yield


def require_measured(trial: LiveTrial) -> Verification:
    if trial.verification is None:
        reason = trial.outcome.reason if trial.outcome.kind == "rejected" else "nothing was measured"
        raise NotServedError(f"{trial.candidate.label}: {reason}")
    return trial.verification


def show(found: Verification, place: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from rich.console import Console

    from fwopt.report.verification import render

    console = Console(highlight=False)
    console.print(render(found))
    for path in sorted(p for p in place.iterdir() if p.is_file()):
        console.print(f"  {path}", soft_wrap=True)


def exit_by(found: Verification, tolerance: float | None) -> None:
    """1: the run does not count, or a metric is off by more than was allowed."""
    if not found.valid:
        raise typer.Exit(1)
    if tolerance is not None and any(c.error is None or abs(c.error) > tolerance for c in found.checks):
        raise typer.Exit(1)
