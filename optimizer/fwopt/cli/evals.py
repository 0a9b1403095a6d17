"""`fwopt evals`: grade a running server's answers, beside a reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fwopt.cli import options as o

_SERVER, _REFERENCE, _RUN = "Server", "Reference", "Run"


def _option(panel: str, metavar: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def evals(
    sets: Annotated[
        list[Path], typer.Argument(metavar="EVALS...", help="JSON lines (docs/evals.md), or lm-eval:TASK.")
    ],
    url: Annotated[str, _option(_SERVER, "URL", "The server, without /v1: http://127.0.0.1:8000.")],
    model: Annotated[str | None, _option(_SERVER, "NAME", "Name in requests. [default: its only one]")] = None,
    api: Annotated[str, _option(_SERVER, "API", "chat or completions.")] = "chat",
    tools: Annotated[
        str, _option(_SERVER, "WHERE", "server: it parses tool calls; prompt: described in the prompt.")
    ] = "server",
    api_key_env: Annotated[str | None, _option(_SERVER, "VARIABLE", "Environment variable that holds its key.")] = None,
    against: Annotated[
        str | None, _option(_REFERENCE, "URL|FILE", "The reference: a server, or its answers from an earlier run.")
    ] = None,
    against_model: Annotated[
        str | None, _option(_REFERENCE, "NAME", "Name in requests to the reference. [default: its only one]")
    ] = None,
    margin: Annotated[str, _option(_REFERENCE, "DROP", "Largest drop of the mean score that passes.")] = "1pp",
    scheme: Annotated[
        str | None, _option(_REFERENCE, "NAME", "How the server's model is quantized: fp8, w4a16-g64+kv-fp8.")
    ] = None,
    of: Annotated[
        str | None, _option(_REFERENCE, "MODEL", "Of which model: with --scheme, `fwopt tune` finds the result.")
    ] = None,
    limit: Annotated[int | None, _option(_RUN, "N", "Ask only N items, drawn by --seed.", min=1)] = None,
    seed: Annotated[int, _option(_RUN, "N", "Of the draw, of sampling and of intervals.", min=0)] = 0,
    concurrency: Annotated[
        int, _option(_RUN, "N", "Requests in flight; 1 keeps answers reproducible.", min=1, max=1024)
    ] = 1,
    timeout: Annotated[float, _option(_RUN, "SECONDS", "For one answer.", min=0.1)] = 600.0,
    lm_eval_tasks: Annotated[
        Path | None, _option(_RUN, "FOLDER", "Tasks of your own for lm-eval:TASK, as YAML.")
    ] = None,
    out: Annotated[Path | None, _option(_RUN, "FOLDER", "Folder of answers. [default: the user's own]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.", rich_help_panel=_RUN)] = False,
    json: o.Json = False,
) -> None:
    """Ask a server an eval set, grade its answers, and say whether it is not worse than the reference, with what
    confidence. Exit status 1: worse, or undecided.

    Example: fwopt evals tools.jsonl --url http://127.0.0.1:8000 --against http://127.0.0.1:8001 --margin 0.5pp
    """
    from fwopt.cli.counting import counting
    from fwopt.cli.evaluating import compared, eval_settings, named, prepare, render, to_json
    from fwopt.cli.replaying import find_endpoint

    settings = eval_settings(api=api, tools=tools, limit=limit, seed=seed, concurrency=concurrency, timeout_s=timeout)
    what = named(sets, settings, lm_eval_tasks)
    server = find_endpoint(url, model=model, engine=None, api=api, key_variable=api_key_env, max_context=None)
    reference, known = None, None
    if against is not None and against.startswith(("http://", "https://")):
        reference = find_endpoint(
            against, model=against_model, engine=None, api=api, key_variable=api_key_env, max_context=None
        )
    elif against is not None:
        known = Path(against)
    servers = server, reference
    asked = prepare(what, settings, servers, known=known, margin=margin, scheme=scheme, of=of, out=out)
    with counting() as tell:
        found = compared(asked, tell, resume=resume)
    typer.echo(to_json(found) if json else render(found))
    if any(result.fails for result in found):
        raise typer.Exit(1)
