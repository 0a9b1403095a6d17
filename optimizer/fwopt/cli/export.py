"""`fwopt export`: write a plan's deployment files again, from `plan.json` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.errors import NothingFitsError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or its plan.json.")],
    target: Annotated[str | None, typer.Option(help="Engine to write files for. [default: the plan's engine]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to. [default: RUN/deploy]")] = None,
) -> None:
    """Write the files that deploy a plan: engine config, start script, environment, router."""
    from fwopt.deploy import write
    from fwopt.search.run_folder import read_plan

    plan = read_plan(run)
    if plan.chosen is None:
        raise NothingFitsError(
            f"{run} chose no deployment (status {plan.status}); relax a limit or add GPUs and tune again"
        )
    folder = out if out is not None else (run if run.is_dir() else run.parent) / "deploy"
    for path in write(plan, folder, target):
        typer.echo(path)
