"""`fwopt quality`: what each precision costs this model on this text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fwopt.cli import options as o

_TEXT, _RUN = "Text", "Run"


def quality(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or cached Hugging Face id, with weights.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", metavar="FILE", help="Text to compare on, repeatable: a class each.", rich_help_panel=_TEXT
        ),
    ] = None,
    workload: o.TracesWithText = None,
    max_tokens: Annotated[
        int, typer.Option(min=128, metavar="N", help="Tokens to compare on.", rich_help_panel=_TEXT)
    ] = 16384,
    window: o.Window = 512,
    schemes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="For example fp8,w4a16-g64,fp8+kv-fp8. [default: all that fit]", rich_help_panel=_RUN
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Compare a checkpoint that is quantized already (compressed-tensors), repeatable.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp32"], typer.Option(help="What the reference computes in.", rich_help_panel=_RUN)
    ] = "bf16",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of text and of intervals.", rich_help_panel=_RUN)] = 0,
    out: o.Studies = None,
    json: o.Json = False,
) -> None:
    """Compare quantization schemes with the unquantized model: KL divergence, top-1 and top-5 agreement, perplexity,
    with intervals, beside the noise of the same model computed otherwise. What was measured before is read.

    Example: fwopt quality ./SmolLM2-135M-Instruct --text prose.txt --text code.py
    """
    from fwopt.cli.comparing_quality import request
    from fwopt.cli.counting import counting
    from fwopt.quality import study
    from fwopt.report.quality import render

    asked = request(
        model, text or [], workload or [], schemes, out,
        max_tokens=max_tokens, window=window, seed=seed, dtype=dtype, checkpoints=checkpoint or [],
    )  # fmt: skip
    with counting() as tell:
        results, path = study.run(asked, tell)
    typer.echo(results.model_dump_json(indent=2) if json else render(results, str(path)))
