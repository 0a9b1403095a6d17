"""`fwopt simulate`: replay a trace on one given deployment, in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    trace: Annotated[Path, typer.Argument(help="Trace file; any format `fwopt inspect` reads.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(help="vLLM --config YAML (or a `vllm serve` line); absent: the engine's own defaults."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face id, folder or config.json.")] = None,
    hardware: Annotated[str | None, typer.Option(help="For example h200:8; absent: this machine's GPUs.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Copies of the engine; absent: what the file says.")
    ] = None,
    router: Annotated[str | None, typer.Option(help="round_robin or least_requests.")] = None,
    rate_scale: Annotated[float, typer.Option(help="Replay arrivals this many times as fast.")] = 1.0,
    slo: Annotated[list[str] | None, typer.Option(help="Limit to judge, for example 'ttft:p99<2s'.")] = None,
    price: Annotated[float | None, typer.Option(help="US dollars per GPU and hour.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Trace format; detected when absent.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out, count and report them.")] = False,
    only_model: Annotated[str | None, typer.Option(help="Of a trace with several models, the one to replay.")] = None,
    profiles: Annotated[Path | None, typer.Option(help="Folder of measured profiles.")] = None,
    records: Annotated[Path | None, typer.Option(help="Write one JSON line a request here (.gz, .zst).")] = None,
    request: Annotated[int | None, typer.Option(min=0, help="Show the life of request N (0 is the first).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """What a deployment would do with this trace: latencies, limits kept, cost, and how the numbers are known."""
    from rich.console import Console

    from fwopt.cli.what_if import prepare_what_if
    from fwopt.report.simulation import as_json, life_of, render, write_records

    case = prepare_what_if(
        trace, config=config, model=model, hardware=hardware, replicas=replicas, router=router, rate_scale=rate_scale,
        slos=slo or [], price=price, format=format, skip_bad=skip_bad, only_model=only_model, profiles=profiles,
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
