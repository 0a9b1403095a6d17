"""`fwopt tune`: a trace in; a deployment, its config files and the evidence out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o
from fwopt.errors import InputError, NothingFitsError

_RUN, _LIVE = "Run", "Live"


def tune(
    context: typer.Context,
    trace: Annotated[
        Path | None, typer.Argument(metavar="TRACE", help="Recorded requests; see docs/workloads.md.")
    ] = None,
    model: o.Model = None,
    hardware: o.Hardware = None,
    price: o.Price = None,
    engine: o.Engine = None,
    profiles: o.Profiles = None,
    calibration: o.Calibration = None,
    speculation: o.Speculation = None,
    slo: o.Slos = None,
    minimize: o.Minimize = None,
    maximize: o.Maximize = None,
    max_quality_drop: o.QualityDrop = None,
    measure_quality: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Measure quality on this text (or trace with text) where it could decide, repeatable.",
            rich_help_panel="Objective",
        ),
    ] = None,
    allow_unmeasured: Annotated[
        bool, typer.Option("--allow-unmeasured", help="Let assumed operator times decide.", rich_help_panel="Objective")
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="vLLM config in use today. [default: vLLM's defaults]", rich_help_panel="Objective"
        ),
    ] = None,
    rate_scale: o.RateScale = None,
    only_model: o.OnlyModel = None,
    format: o.Format = None,
    skip_bad: o.SkipBad = False,
    config: o.ConfigFile = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Simulations to aim for; the first round always ends. [default: 160]",
            rich_help_panel=_RUN,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Seconds, capacity search included.", rich_help_panel=_RUN),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Same seed, same bytes. [default: 0]", rich_help_panel=_RUN)
    ] = None,
    workers: o.Workers = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Run folder. [default: reports/NAME]", rich_help_panel=_RUN)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the run in that folder.", rich_help_panel=_RUN)
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run, from its own inputs.", rich_help_panel=_RUN)
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="First measure the engine's step times here, if not known.", rich_help_panel=_LIVE
        ),
    ] = False,
    live: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Measure the N best and the baseline here; choose by that.", rich_help_panel=_LIVE
        ),
    ] = None,
    live_requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Replay N requests in a row that stand for all. [default: all]",
            rich_help_panel=_LIVE,
        ),
    ] = None,
    live_model: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Weights to load. [default: the model's own]", rich_help_panel=_LIVE),
    ] = None,
    json: o.Json = False,
) -> None:
    """Find the deployment that serves a recorded trace best, and write its config files and report.

    Example: fwopt tune workload.jsonl --model Qwen/Qwen3-8B --hardware h200:8 --slo 'ttft:p99<2s' --minimize cost
    """
    from fwopt.cli import tuning

    # None and False by identity: `--rate-scale 0` is a value, to be refused and not forgotten
    given = {n: v for n, v in context.params.items() if v is not None and v is not False and v not in ([], ())}
    asked = tuning.Live.of(given)
    if resume is not None:
        job, folder, timeout = tuning.resume(resume, trace, given)
    else:
        if trace is None:
            raise InputError("name a trace, for example: fwopt tune workload.jsonl --model Qwen/Qwen3-8B")
        job, folder, timeout = tuning.start(trace, given)
    plan, written = tuning.run(job, folder, workers=workers, timeout_s=timeout, live=asked)
    tuning.show(plan, folder, written, as_json=json)
    if plan.chosen is None and plan.status == "infeasible":
        raise NothingFitsError(tuning.why_nothing(plan))
    if plan.status == "interrupted":
        raise typer.Exit(130)
