"""`fwopt speculation`: how often guessed tokens are right on this text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fwopt.cli import options as o

_TEXT, _GUESS, _RUN = "Text", "Drafters", "Run"


def speculation(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or cached Hugging Face id.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", metavar="FILE", help="Text that the model goes on with, repeatable.", rich_help_panel=_TEXT
        ),
    ] = None,
    workload: o.TracesWithText = None,
    replies: Annotated[
        Literal["recorded", "generated"] | None,
        typer.Option(
            help="The trace's own, or the model's greedy ones. [default: recorded, without --text]",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of a plain text, read first.", rich_help_panel=_TEXT)
    ] = 256,
    reply_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of a reply at most.", rich_help_panel=_TEXT)
    ] = 128,
    max_replies: Annotated[
        int, typer.Option(min=6, metavar="N", help="Replies, drawn by the seed.", rich_help_panel=_TEXT)
    ] = 64,
    ngram: Annotated[
        list[str] | None,
        typer.Option(
            "--ngram",
            metavar="MIN-MAX",
            help="Prompt lookup by so many tokens, repeatable. [default: 2-4, without --draft]",
            rich_help_panel=_GUESS,
        ),
    ] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option("--draft", metavar="MODEL", help="Draft model, repeatable.", rich_help_panel=_GUESS),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--tokens", min=1, metavar="K", help="Proposed in a step, repeatable. [default: 5]", rich_help_panel=_GUESS
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice and of intervals.", rich_help_panel=_RUN)] = 0,
    out: o.Studies = None,
    json: o.Json = False,
) -> None:
    """Measure how many tokens a decode step gives when an n-gram lookup or a draft model guesses ahead: acceptance by
    position and mean acceptance length as vLLM counts them, with intervals. What was measured before is read.

    Example: fwopt speculation ./SmolLM2-135M-Instruct --workload recorded.jsonl --ngram 2-4 --tokens 3 --tokens 5
    """
    from fwopt.cli.counting import counting
    from fwopt.cli.guessing import request
    from fwopt.quality.speculation import study
    from fwopt.report.speculation import render
    from fwopt.spec.speculation import SpeculationSettings

    wanted = replies or ("recorded" if workload and not text else "generated")
    settings = SpeculationSettings(
        replies=wanted, prompt_tokens=prompt_tokens, reply_tokens=reply_tokens, max_replies=max_replies, seed=seed
    )
    asked = request(model, text or [], workload or [], ngram or [], draft or [], tokens or [5], settings, out)
    with counting() as tell:
        results, path = study.run(asked, tell)
    typer.echo(results.model_dump_json(indent=2) if json else render(results, asked.names, str(path)))
