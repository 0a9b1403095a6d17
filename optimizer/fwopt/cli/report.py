"""`fwopt report`: the summary of a run again, and its report.html and report.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or its plan.json.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to. [default: RUN]")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open report.html in the browser.")] = False,
) -> None:
    """Print the summary of a run and write report.html and report.md, from plan.json and trials.jsonl alone."""
    from rich.console import Console

    from fwopt.cli.run_files import read_run
    from fwopt.report import write
    from fwopt.report.terminal import render

    plan, trials, folder = read_run(run)
    paths = write(plan, trials, out if out is not None else folder)
    render(plan, trials, Console(highlight=False), files=paths)
    if show:
        typer.launch(paths[0].resolve().as_uri())
