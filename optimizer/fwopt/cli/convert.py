"""`fwopt convert`: any trace to fwopt's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli.inspect import Format, SkipBad, Tokenizer, Trace


def convert(
    trace: Trace,
    out: Annotated[Path, typer.Argument(help="File to write; compressed when it ends in .gz or .zst.")],
    format: Format = None,
    skip_bad: SkipBad = False,
    model: Tokenizer = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
) -> None:
    """Write a trace as fwopt's own JSONL: lengths, times and dense prefix ids, never text."""
    from fwopt.workload.reading import read
    from fwopt.workload.writing import check_target, write_own

    check_target(out, force=force)
    found = read(trace, format=format, skip_bad=skip_bad, model=model)
    write_own(found.workload, out, force=force)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if found.skipped_count:
        typer.echo(f"left out {found.skipped_count:,} of {found.lines:,} lines, first: {found.skipped[0]}", err=True)
    typer.echo(f"{out}: {len(found.workload):,} requests from {found.format}, digest {found.workload.digest}")
