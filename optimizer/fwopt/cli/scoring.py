"""The work of `fwopt score`, loaded only when the verb runs."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from fwopt.errors import InputError


def run_score(
    measurements: Path,
    *,
    as_json: bool,
    rows: Path | None,
    without: str | None,
    held_out: str | None,
    refit: Path | None,
) -> None:
    """Score, or refit, and print."""
    from rich.console import Console

    from fwopt.perf.effects import parse_effects
    from fwopt.score.refit import cross_validate, leave_models_out, refit_all
    from fwopt.score.render import render
    from fwopt.score.run import score
    from fwopt.score.summary import summarize
    from fwopt.score.table import read_table

    if sum((without is not None, held_out is not None, refit is not None)) > 1:
        raise InputError("--without, --held-out and --refit exclude each other; give one")
    off = parse_effects(without)
    if held_out is not None and held_out != "models" and not (held_out.isdecimal() and int(held_out) >= 2):
        raise InputError(f"--held-out must be a number of parts from 2 on, or 'models', got '{held_out}'")
    table = read_table(measurements)
    console = Console(stderr=True)
    if refit is not None:
        with console.status("fitting, a few minutes"):
            paths = refit_all(table, refit, measurements.name)
        for path in paths:
            typer.echo(path)
        return
    with console.status(f"replaying {len(table)} measured loads"):
        if held_out == "models":
            scored = leave_models_out(table)
        else:
            scored = cross_validate(table, int(held_out)) if held_out else score(table, off=off)
    if rows is not None:
        _write(scored.drop(columns=["moe"]), rows)
    summary = summarize(scored)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        Console(highlight=False).print(render(summary))


def _write(frame: object, path: Path) -> None:
    """Whole or not at all."""
    import pandas as pd

    from fwopt.atomic import written_whole

    assert isinstance(frame, pd.DataFrame)
    with written_whole(path) as beside:
        frame.to_csv(beside, index=False, compression="gzip" if path.suffix == ".gz" else None)
