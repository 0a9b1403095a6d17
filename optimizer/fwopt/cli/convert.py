"""`fwopt convert`: any trace to fwopt's own format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwopt.cli.inspect import Format, SkipBad, Tokenizer, Trace

if TYPE_CHECKING:
    from fwopt.workload import Workload


def convert(
    trace: Trace,
    out: Annotated[Path, typer.Argument(help="File to write; compressed when it ends in .gz or .zst.")],
    format: Format = None,
    skip_bad: SkipBad = False,
    model: Tokenizer = None,
    requests: Annotated[
        str | None, typer.Option("--requests", metavar="A:B", help="Only these, in order of arrival; 0 is the first.")
    ] = None,
    cut_context: Annotated[
        int | None,
        typer.Option("--cut-context", metavar="TOKENS", help="Cut prompts and outputs to fit this context length."),
    ] = None,
    rate_scale: Annotated[
        float | None, typer.Option("--rate-scale", metavar="FACTOR", help="Arrivals this many times as fast.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
) -> None:
    """Write a trace as fwopt's own JSONL: lengths, times and dense prefix ids, never text. Or part of it, or the
    same requests made to fit a small model.

    Example: fwopt convert trace.csv.gz small.jsonl --requests 0:1000 --cut-context 2048 --rate-scale 0.25
    """
    from fwopt.errors import plain
    from fwopt.workload.reading import read
    from fwopt.workload.writing import check_target, write_own

    check_target(out, force=force)
    found = read(trace, format=format, skip_bad=skip_bad, model=model)
    workload, said = _changed(found.workload, requests, cut_context, rate_scale)
    write_own(workload, out, force=force)
    for note in (*found.notes, *said):
        typer.echo(f"note: {plain(note)}", err=True)
    if found.skipped_count:
        first = plain(str(found.skipped[0]))
        typer.echo(f"left out {found.skipped_count:,} of {found.lines:,} lines, first: {first}", err=True)
    typer.echo(f"{out}: {len(workload):,} requests from {found.format}, digest {workload.digest}")


def _changed(
    workload: Workload, requests: str | None, cut: int | None, rate_scale: float | None
) -> tuple[Workload, list[str]]:
    """The part or version that was asked for, and what was cut of it."""
    from fwopt.workload.scale import scale_rate
    from fwopt.workload.select import cut_context, parse_range, window

    if requests is not None:
        workload = window(workload, *parse_range(requests, len(workload)))
    said = []
    if cut is not None:
        whole, workload = workload, cut_context(workload, cut)
        prompts, outputs = (
            int((getattr(workload, name) < getattr(whole, name)).sum()) for name in ("prompt_tokens", "output_tokens")
        )
        said.append(
            f"cut to fit {cut:,} tokens: {prompts:,} prompts and {outputs:,} outputs of {len(whole):,} requests"
        )
    return workload if rate_scale is None else scale_rate(workload, rate_scale), said
