"""`fwopt record`: a proxy that writes the trace of what passes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def record(
    upstream: Annotated[
        str, typer.Option("--upstream", metavar="URL", help="Server to pass requests to: http://127.0.0.1:8000.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Trace to write or go on with: workload.jsonl.")],
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Listen here. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="0: a free one. [default: 8080]")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The model's folder or tokenizer.json: exact prefix blocks of 16 tokens."),
    ] = None,
    with_text: Annotated[bool, typer.Option("--with-text", help="Also write prompts and replies.")] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Secret of the prefix hashes, made if missing. [default: a new one a run]"),
    ] = None,
    rotate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE|TIME",
            help="Begin a new file at 100MB, 1GB, 30m, 1h, 1d; a size and a time may both be given.",
        ),
    ] = None,
    fsync_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="On disk at the latest this much later. [default: 200]")
    ] = None,
    drain_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait for open replies when stopped. [default: 60]")
    ] = None,
    no_ask_usage: Annotated[
        bool,
        typer.Option("--no-ask-usage", help="Never ask the server for token counts that the client did not ask for."),
    ] = False,
) -> None:
    """Pass requests through to an OpenAI-compatible server and write their lengths, times, prefixes and sessions."""
    from pydantic import ValidationError

    from fwopt.errors import InputError
    from fwopt.record.run import record as run
    from fwopt.record.settings import RecordSettings, Rotation

    given = {"host": host, "port": port, "fsync_ms": fsync_ms, "drain_s": drain_s}
    try:
        settings = RecordSettings(
            upstream=upstream,
            out=out,
            tokenizer=tokenizer,
            with_text=with_text,
            key_file=key_file,
            rotation=Rotation.parse(rotate or []),
            ask_usage=not no_ask_usage,
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}, got {first['input']!r}"
        ) from None
    run(settings, lambda line: typer.echo(line, err=True))
