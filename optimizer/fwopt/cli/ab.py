"""`fwopt ab`: two servers, latency and quality together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fwopt.cli import options as o

_SERVERS, _LATENCY, _QUALITY, _RUN = "Servers", "Latency", "Quality", "Run"


def _option(panel: str, metavar: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def ab(
    url_a: Annotated[str, typer.Argument(metavar="URL_A", help="The server that is there, without /v1.")],
    url_b: Annotated[str, typer.Argument(metavar="URL_B", help="The one that is to take its place.")],
    evals: Annotated[
        list[Path] | None, _option(_QUALITY, "FILE", "Eval set, repeatable; see docs/evals.md.", "--evals")
    ] = None,
    workload: Annotated[
        Path | None, _option(_LATENCY, "TRACE", "Recorded requests to replay on both.", "--workload")
    ] = None,
    model_a: Annotated[str | None, _option(_SERVERS, "NAME", "Name in requests to A. [default: its only one]")] = None,
    model_b: Annotated[str | None, _option(_SERVERS, "NAME", "Name in requests to B. [default: its only one]")] = None,
    api_key_env: Annotated[
        str | None, _option(_SERVERS, "VARIABLE", "Environment variable that holds the key of both.")
    ] = None,
    requests: Annotated[int, _option(_LATENCY, "N", "Requests on each server, over all blocks.", min=8)] = 240,
    blocks: Annotated[int, _option(_LATENCY, "N", "Pairs of short replays.", min=8, max=1000)] = 12,
    closed: Annotated[int | None, _option(_LATENCY, "N", "Closed loop: N requests in flight.", min=1)] = None,
    rate_scale: o.RateScale = None,
    max_slowdown: Annotated[str, _option(_LATENCY, "SHARE", "Largest growth of a latency that passes.")] = "5%",
    tokenizer: Annotated[Path | None, _option(_LATENCY, "FILE", "tokenizer.json or its folder.")] = None,
    margin: Annotated[str, _option(_QUALITY, "DROP", "Largest drop of a set's mean score that passes.")] = "1pp",
    tools: Annotated[
        str, _option(_QUALITY, "WHERE", "server: it parses tool calls; prompt: described in the prompt.")
    ] = "server",
    limit: Annotated[int | None, _option(_QUALITY, "N", "Only N items of each set, drawn by --seed.", min=1)] = None,
    seed: Annotated[int, _option(_RUN, "N", "Of order, labels, draws and intervals.", min=0)] = 0,
    out: Annotated[Path | None, _option(_RUN, "FOLDER", "[default: reports/ab-TIME]")] = None,
    json: o.Json = False,
) -> None:
    """Hold server B against server A: the same requests and the same items, alternately in drawn order, graded
    without knowing who answered; one verdict. Exit status 1: B is worse, or it is undecided.

    Example: fwopt ab http://old:8000 http://new:8000 --evals tools.jsonl --workload recorded.jsonl
    """
    from fwopt.cli.comparing_servers import prepare
    from fwopt.cli.counting import counting
    from fwopt.report.ab import render

    with counting() as tell:
        session = prepare(
            (url_a, url_b), (model_a, model_b), evals or [], workload, out, tell, key_variable=api_key_env,
            requests=requests, blocks=blocks, concurrency=closed, rate_scale=rate_scale or 1.0,
            max_slowdown=max_slowdown, tokenizer=tokenizer, margin=margin, tools=tools, limit=limit, seed=seed,
        )  # fmt: skip
        found = session.run()
    typer.echo(found.model_dump_json(indent=2) if json else render(found, str(session.folder)))
    if found.verdict != "holds":
        raise typer.Exit(1)
