"""`fwopt profile`: measure step times of an engine on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o

_ENGINE, _RUN = "Engine", "Run"


def profile(
    engine: o.Engine = None,
    model: o.Model = None,
    hardware: o.Hardware = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Measure the server that runs there. [default: start the engine, and end it]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name the server goes by. [default: its only one]", rich_help_panel=_ENGINE),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Weights to start the engine with: a converted checkpoint, a GGUF file. [default: the model's folder]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Scheme its weights are in: bf16, fp8, gguf-q8_0 ... [default: that of the model]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int,
        typer.Option(min=2, metavar="N", help="Most sequences at a time that it takes.", rich_help_panel=_ENGINE),
    ] = 32,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=16, metavar="N", help="Most tokens a step (llama.cpp: n_batch).", rich_help_panel=_ENGINE)
    ] = 2048,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=128, metavar="N", help="Longest context. [default: the model's, at most 4096]", rich_help_panel=_ENGINE
        ),
    ] = None,
    operators: Annotated[
        bool,
        typer.Option(
            "--operators", help="Time operators with torch instead of an engine's steps.", rich_help_panel=_ENGINE
        ),
    ] = False,
    ranks: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="With --operators: devices to all-reduce over.", rich_help_panel=_ENGINE),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Profiles to add to. [default: the user's own]", rich_help_panel=_RUN),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure although a profile has it.", rich_help_panel=_RUN)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run was stopped.", rich_help_panel=_RUN)
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A rough profile in about a minute.", rich_help_panel=_RUN)
    ] = False,
    allow_busy: Annotated[
        bool, typer.Option("--allow-busy", help="Measure although other work runs.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Measure what a step of an engine takes on this machine, through its own API; plans then rest on that.

    Example: fwopt profile --engine vllm --model ./SmolLM2-135M-Instruct --hardware cpu
    """
    from fwopt.cli import profiling

    asked = profiling.Asked(
        engine=engine, model=model, hardware=hardware, url=url, served=served_model, weights=weights, scheme=scheme,
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, max_model_len=max_model_len,
        ranks=ranks, out=out, again=again, resume=resume, quick=quick, allow_busy=allow_busy,
    )  # fmt: skip
    if operators:
        profiling.run_operators(asked)
    else:
        profiling.run_steps(asked)
