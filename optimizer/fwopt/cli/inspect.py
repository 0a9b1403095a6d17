"""`fwopt inspect`: what a trace is like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Trace = Annotated[Path, typer.Argument(help="Trace file: JSONL or CSV, plain, .gz or .zst.", show_default=False)]
Format = Annotated[
    str | None, typer.Option("--format", help="Trace format; detected when absent. See docs/workloads.md.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out, count and report them.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option("--model", help="Folder with tokenizer.json, for OpenAI logs whose lines lack usage."),
]


def inspect(
    trace: Trace,
    format: Format = None,
    skip_bad: SkipBad = False,
    model: Tokenizer = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Describe a trace: rate and bursts, lengths, prefix sharing, sessions, clock, and the windows to size for."""
    from rich.console import Console

    from fwopt.workload.inspection import inspect as describe
    from fwopt.workload.reading import read

    with Console(stderr=True).status(f"reading {trace}"):
        found = describe(str(trace), read(trace, format=format, skip_bad=skip_bad, model=model))
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from fwopt.workload.render import render

    Console(highlight=False).print(render(found))
