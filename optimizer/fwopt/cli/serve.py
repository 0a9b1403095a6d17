"""`fwopt serve`: the reference engine behind an OpenAI-compatible API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_ENGINE = "Engine"


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A candidate as YAML; its key `model` may name the model. [default: defaults]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="PATH", help="Folder with config.json and weights, or a GGUF file."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name in requests. [default: the model path]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where tokenizer.json lies. [default: beside the model]")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one JSON line a step here.", rich_help_panel=_ENGINE)
    ] = None,
    load_format: Annotated[
        str,
        typer.Option(metavar="auto|dummy", help="dummy: random weights, config.json alone.", rich_help_panel=_ENGINE),
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="[default: cuda where there is one]", rich_help_panel=_ENGINE)
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="bf16|fp32", help="Of activations.", rich_help_panel=_ENGINE)] = "bf16",
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="CPU threads a rank. [default: cores / tp]", rich_help_panel=_ENGINE),
    ] = None,
    kv_cache_gib: Annotated[
        float | None,
        typer.Option(metavar="X", help="KV cache a rank. [default: from free memory]", rich_help_panel=_ENGINE),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Longest prompt + output. [default: config's, model's]", rich_help_panel=_ENGINE
        ),
    ] = None,
    enforce_eager: Annotated[bool, typer.Option(help="No CUDA graphs.", rich_help_panel=_ENGINE)] = False,
    operators: Annotated[
        str | None,
        typer.Option(
            metavar="torch|triton",
            help="triton: fwopt_kernels, torch for the rest. [default: triton on a GPU]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
) -> None:
    """Serve one model with the reference engine: completions and chat, streamed, every step recorded."""
    from fwopt.cli.serving import Asked, prepare
    from fwopt.engine.server.serve import serve as run

    asked = Asked(
        config=config, model=model, served_model_name=served_model_name, tokenizer=tokenizer, records=records,
        load_format=load_format, device=device, dtype=dtype, threads=threads, kv_cache_gib=kv_cache_gib,
        max_model_len=max_model_len, enforce_eager=enforce_eager, operators=operators,
    )  # fmt: skip
    settings, served = prepare(asked)
    raise typer.Exit(run(settings, served, host, port))
