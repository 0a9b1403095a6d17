"""`fwopt explain`: why one candidate of a run was chosen or fell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or its plan.json.")],
    which: Annotated[
        str,
        typer.Argument(metavar="WHICH", help="chosen, baseline, nearest, a trial number, or the start of an id."),
    ] = "chosen",
) -> None:
    """Say why a candidate was chosen or fell, with its numbers against the limits and how they are known."""
    from rich.console import Console

    from fwopt.cli.run_files import read_run
    from fwopt.report.explain import render

    plan, trials, _ = read_run(run)
    render(plan, trials, which, Console(highlight=False))
