"""`fwopt quantize`: the model in a cheaper precision, as a checkpoint that engines load, with what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o

_TEXT, _MIX, _RUN = "Text", "Mixture (--scheme mixed)", "Run"


def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN", help="Folder or cached id with weights, or a run of `fwopt tune`."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the checkpoint goes; must not be there yet.")],
    scheme: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For example int8, w4a16-g64, gptq-w4a16-g64, awq-w4a16-g64, smoothquant-int8, gguf-q4_k_m, mixed. "
            "[default: what the run chose]",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to measure on, repeatable.", rich_help_panel=_TEXT),
    ] = None,
    workload: o.TracesWithText = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            rich_help_panel=_TEXT,
            help="Text that gptq, awq and smoothquant round by, and mixed chooses by; other text than --text.",
        ),
    ] = None,
    calibrate_tokens: Annotated[
        int, typer.Option(min=512, metavar="N", help="Of --calibrate.", rich_help_panel=_TEXT)
    ] = 16384,
    max_tokens: Annotated[
        int, typer.Option(min=128, metavar="N", help="Tokens to measure on.", rich_help_panel=_TEXT)
    ] = 16384,
    window: o.Window = 512,
    choices: Annotated[
        str, typer.Option(metavar="A,B", help="Schemes that a group may have, beside bf16.", rich_help_panel=_MIX)
    ] = "int8,w4a16-g64",
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", min=0, metavar="KL", help="Budget, nats a token.", rich_help_panel=_MIX),
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option(
            metavar="PROFILE",
            help="Operators measured on the hardware to serve on (profile folder); or `vllm`: time vLLM's layers here.",
            rich_help_panel=_MIX,
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            "--step",
            metavar="RUN|TOKENS:SHARE,…",
            help="Steps that times are weighed over: those that a run of `fwopt tune` simulated, or by hand, "
            "`8:0.95,512:0.05`. [default: those of RUN]",
            show_default=False,
            rich_help_panel=_MIX,
        ),
    ] = None,
    band: Annotated[
        int, typer.Option(min=1, metavar="N", help="Layers that share one scheme.", rich_help_panel=_MIX)
    ] = 5,
    gguf_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The model as F16 GGUF, for want of a converter.", rich_help_panel=_RUN),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of text.", rich_help_panel=_RUN)] = 0,
    quality_out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of measurements. [default: the user's own]", rich_help_panel=_RUN),
    ] = None,
    json: o.Json = False,
) -> None:
    """Write a model in a cheaper precision: compressed-tensors for vLLM, SGLang and transformers, or GGUF. It is read
    back, and its card carries what it costs beside the unquantized model. Nothing half-written is left.

    Example: fwopt quantize ./SmolLM2-135M-Instruct --scheme int8 --text prose.txt --out ./SmolLM2-135M-int8
    """
    from fwopt.cli.counting import counting
    from fwopt.cli.quantizing import Asked, make_order
    from fwopt.quantize.produce import produce

    asked = Asked(
        model=model, out=out, scheme=scheme, text=tuple(text or ()), workload=tuple(workload or ()),
        calibrate=tuple(calibrate or ()), calibrate_tokens=calibrate_tokens, max_tokens=max_tokens, window=window,
        choices=choices, max_kl=max_kl, times=times, step=step, band=band, gguf_from=gguf_from, seed=seed,
        home=quality_out,
    )  # fmt: skip
    with counting() as tell:
        made = produce(make_order(asked, tell), tell)
    if json:
        typer.echo(made.model_dump_json(indent=2))
        return
    cost = "not measured" if made.study is None else f"KL {made.study.figures.overall.kl.value:.3g}"
    size = f"{made.weight_bytes / 1e6:,.1f} MB, {made.weight_bytes / made.source_bytes:.0%} of the unquantized"
    typer.echo(f"{out}: {made.scheme}, {size}; {cost}; {made.checked}; card in {out / 'README.md'}")
    if made.mixture is not None:
        typer.echo(f"  least time over {made.mixture.steps}; times: {made.mixture.times}")
