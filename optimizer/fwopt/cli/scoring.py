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
    held_out: int | None,
    refit: Path | None,
) -> None:
    """Score, or refit, and print."""
    from rich.console import Console

    from fwopt.score.effects import parse_effects
    from fwopt.score.refit import cross_validate, refit_all
    from fwopt.score.render import render
    from fwopt.score.run import score
    from fwopt.score.summary import summarize
    from fwopt.score.table import read_table

    if sum((without is not None, held_out is not None, refit is not None)) > 1:
        raise InputError("--without, --held-out and --refit exclude each other; give one")
    off = parse_effects(without)
    table = read_table(measurements)
    console = Console(stderr=True)
    if refit is not None:
        with console.status("fitting, a few minutes"):
            paths = refit_all(table, refit, measurements.name)
        for path in paths:
            typer.echo(path)
        return
    with console.status(f"replaying {len(table)} measured loads"):
        scored = score(table, off=off) if held_out is None else cross_validate(table, held_out)
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

    assert isinstance(frame, pd.DataFrame)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        try:
            frame.to_csv(beside, index=False, compression="gzip" if path.suffix == ".gz" else None)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
