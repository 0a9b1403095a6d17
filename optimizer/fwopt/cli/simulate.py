"""`fwopt simulate`: replay a trace on one given deployment, in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o


def simulate(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Recorded requests; see docs/workloads.md.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="vLLM --config YAML or a `vllm serve` line. [default: vLLM's defaults]"),
    ] = None,
    model: o.Model = None,
    hardware: o.Hardware = None,
    price: o.Price = None,
    engine: o.Engine = None,
    profiles: o.Profiles = None,
    speculation: o.Speculation = None,
    slo: o.Slos = None,
    replicas: o.Replicas = None,
    router: Annotated[
        str | None, typer.Option(metavar="POLICY", help="least_requests, round_robin or cache_aware.")
    ] = None,
    rate_scale: o.RateScale = None,
    only_model: o.OnlyModel = None,
    format: o.Format = None,
    skip_bad: o.SkipBad = False,
    records: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one JSON line a request here (.gz, .zst).")
    ] = None,
    request: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Show the life of request N (0 is the first).")
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Effects to leave out, to see what they are worth.")
    ] = None,
    json: o.Json = False,
) -> None:
    """What a deployment would do with this trace: latencies, limits kept, cost, and how the numbers are known."""
    from rich.console import Console

    from fwopt.cli.what_if import prepare_what_if
    from fwopt.report.simulation import as_json, life_of, render, write_records

    case = prepare_what_if(
        trace, config=config, model=model, hardware=hardware, replicas=replicas, router=router,
        rate_scale=1.0 if rate_scale is None else rate_scale,
        slos=slo or [], price=price, format=format, skip_bad=skip_bad, only_model=only_model, profiles=profiles,
        engine=engine,
        without=without, speculation=speculation,
    )  # fmt: skip
    result, evaluation = case.run()
    if records is not None:
        write_records(result.records, records)
    if request is not None:
        typer.echo(life_of(result.records, request))
        return
    if json:
        typer.echo(as_json(case.candidate, result, evaluation, case.notes))
        return
    Console(highlight=False).print(render(case.candidate, result, evaluation, case.notes))
