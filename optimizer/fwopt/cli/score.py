"""`fwopt score`: how good are the predictions, against measurements that others took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def score(
    measurements: Annotated[Path, typer.Argument(help="CSV of measured serving results, plain or .gz.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    rows: Annotated[Path | None, typer.Option(help="Write every row with its prediction here.")] = None,
    without: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Effects to leave out, to see what each is worth: docs/score.md."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="K|models", help="Refit without each of K parts by configuration, or each model."),
    ] = None,
    refit: Annotated[
        Path | None, typer.Option(help="Fit on these rows and write the calibration to this folder.")
    ] = None,
) -> None:
    """Predict every row of a measured-serving table by simulating the load that it describes; print the errors.

    The schema of the table, and what is excluded and why, is in docs/score.md.
    """
    from fwopt.cli.scoring import run_score

    run_score(measurements, as_json=json, rows=rows, without=without, held_out=held_out, refit=refit)
