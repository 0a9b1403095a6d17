"""`fwopt verify`: a plan held against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o

_SERVER, _SLICE = "Server", "Slice"


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or its plan.json.")],
    trace: Annotated[Path | None, typer.Argument(metavar="TRACE", help="Trace. [default: the run's own]")] = None,
    which: Annotated[
        str, typer.Option("--which", metavar="WHICH", help="chosen, baseline, or the start of a candidate's id.")
    ] = "chosen",
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Use this server, deployed from the run's files. [default: start one here]",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name the server goes by. [default: its first]", rich_help_panel=_SERVER),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="PATH", help="Weights to load. [default: the plan's]", rich_help_panel=_SERVER
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take prompt tokens from this tokenizer.json.", rich_help_panel=_SERVER),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests",
            min=1,
            metavar="N",
            help="Replay the N requests in a row that stand best for all. [default: all]",
            rich_help_panel=_SLICE,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Judge a replay of the same requests made before (a replay.jsonl.gz).",
            rich_help_panel=_SLICE,
        ),
    ] = None,
    within: Annotated[
        str | None, typer.Option("--within", metavar="PERCENT", help="Exit 1 if a metric is off by more, e.g. 15%.")
    ] = None,
    profiles: o.Profiles = None,
    json: o.Json = False,
) -> None:
    """Deploy a plan, replay its workload and show measured beside promised, with what made the difference.

    Example: fwopt verify reports/azure-qwen3-8b-h200x8 --requests 2000
    """
    from fwopt.cli import verifying

    tolerance = verifying.parse_percent(within)
    session = verifying.open_session(
        run,
        trace,
        profiles=profiles,
        requests=requests,
        where=verifying.where(server, served_model, model, tokenizer),
    )
    entry = verifying.entry_of(session.plan, which)
    if replay is not None:
        trial = session.judge(entry, replay)
    else:
        with verifying.shown(session):
            trial = session.measure(entry)
    found = verifying.require_measured(trial)
    verifying.show(found, session.place(trial.candidate), as_json=json)
    verifying.exit_by(found, tolerance)
