"""Options that several verbs share, said once. Defaults live on the models; a flag left out stays None."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TRACE, _TARGET, _WANT, _RUN = "Trace", "Target", "Objective", "Run"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Hugging Face id, folder or config.json. [default: the trace's own model]",
        rich_help_panel=_TARGET,
    ),
]
Hardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="GPU:COUNT",
        help="GPUs, for example h200:8, or cpu. [default: this machine's]",
        rich_help_panel=_TARGET,
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price", metavar="USD", help="US dollars per GPU and hour. [default: catalogue]", rich_help_panel=_TARGET
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME[==X.Y]",
        help="vllm, llamacpp or fwopt; for example vllm==0.24.0 (the default).",
        rich_help_panel=_TARGET,
    ),
]
Profiles = Annotated[
    Path | None,
    typer.Option(
        "--profiles", metavar="FOLDER", help="Folder of operator profiles. [default: shipped]", rich_help_panel=_TARGET
    ),
]
Speculation = Annotated[
    Path | None,
    typer.Option(
        "--speculation",
        metavar="FILE",
        help="What `fwopt speculation` found: its drafters take part. [default: none]",
        rich_help_panel=_TARGET,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="What `fwopt calibrate` learnt of this machine. [default: none]",
        rich_help_panel=_TARGET,
    ),
]
Slos = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="METRIC:pNN<LIMIT",
        help="Limit to keep, repeatable: 'ttft:p99<2s', 'tpot:p95<50ms', 'e2e:mean<10s'.",
        rich_help_panel=_WANT,
    ),
]
Minimize = Annotated[
    list[str] | None,
    typer.Option(
        "--minimize",
        metavar="GOAL",
        help="cost, gpus, kl, a latency: ttft:p99. Several: Pareto.",
        rich_help_panel=_WANT,
    ),
]
Maximize = Annotated[
    list[str] | None,
    typer.Option("--maximize", metavar="GOAL", help="throughput, goodput or top1.", rich_help_panel=_WANT),
]
QualityDrop = Annotated[
    list[str] | None,
    typer.Option(
        "--max-quality-drop",
        metavar="LIMIT",
        help="'kl<0.01', 'top1>99%', 'evals:SET>=-0.5pp', repeatable.",
        rich_help_panel=_WANT,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, metavar="N", help="Copies of the engine. [default: what the config file says]"),
]
RateScale = Annotated[
    float | None,
    typer.Option(
        "--rate-scale",
        metavar="FACTOR",
        help="Replay arrivals this many times as fast. [default: 1]",
        rich_help_panel=_TRACE,
    ),
]
OnlyModel = Annotated[
    str | None,
    typer.Option(
        "--only-model",
        metavar="NAME",
        help="Of a trace with several models, this one's requests.",
        rich_help_panel=_TRACE,
    ),
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="Trace format. [default: detected]", rich_help_panel=_TRACE),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave bad lines out, count and report them.", rich_help_panel=_TRACE)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings file. [default: ./fwopt.yaml if there]", rich_help_panel=_RUN
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Simulations at a time. [default: cores]", rich_help_panel=_RUN),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=_RUN)]
TracesWithText = Annotated[
    list[Path] | None,
    typer.Option(
        "--workload",
        metavar="TRACE",
        help="Recorded with `fwopt record --with-text`, repeatable.",
        rich_help_panel="Text",
    ),
]
Window = Annotated[
    int, typer.Option(min=32, metavar="N", help="Tokens that are read in one go.", rich_help_panel="Text")
]
Studies = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of results. [default: the user's own]", rich_help_panel=_RUN),
]
