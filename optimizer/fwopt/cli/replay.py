"""`fwopt replay`: send a trace to a running server and say what it did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwopt.cli import options as o

if TYPE_CHECKING:
    pass

_SERVER, _LOAD, _CLIENT = "Server", "Load (default: the recorded times)", "Client"


def _option(panel: str, metavar: str, help: str, *names: str, **more: float) -> object:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)  # type: ignore[arg-type]


def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Recorded requests; see docs/workloads.md.")],
    url: Annotated[str, _option(_SERVER, "URL", "The server, without /v1: http://127.0.0.1:8000.")],
    model: Annotated[str | None, _option(_SERVER, "NAME", "Name in requests. [default: its only one]")] = None,
    engine: Annotated[
        str | None, _option(_SERVER, "NAME", "vllm, sglang, llamacpp or fwopt. [default: what the server says]")
    ] = None,
    api: Annotated[str, _option(_SERVER, "API", "completions or chat.")] = "completions",
    api_key_env: Annotated[str | None, _option(_SERVER, "VARIABLE", "Environment variable that holds its key.")] = None,
    max_context: Annotated[
        int | None, _option(_SERVER, "TOKENS", "Longer requests are not sent. [default: what it says]", min=2)
    ] = None,
    rate_scale: o.RateScale = None,
    closed: Annotated[int | None, _option(_LOAD, "N", "Closed loop: N requests in flight.", min=1)] = None,
    poisson: Annotated[float | None, _option(_LOAD, "RATE", "Poisson arrivals at RATE requests/s.")] = None,
    ramp: Annotated[str | None, _option(_LOAD, "FROM:TO", "From one rate to another, requests/s.")] = None,
    seed: Annotated[int, _option(_LOAD, "N", "Of --poisson.", min=0)] = 0,
    think: Annotated[
        float | None, _option(_LOAD, "SECONDS", "From a turn's end to the next turn. [default: docs/live.md]", min=0)
    ] = None,
    limit: Annotated[int | None, _option(_CLIENT, "N", "Send only the first N requests.", min=1)] = None,
    cache: Annotated[str, _option(_CLIENT, "STATE", "Prefix cache at the start: cold, warm or 'as is'.")] = "cold",
    salt: Annotated[
        str | None, _option(_CLIENT, "TEXT", "Equal salts: equal prompts. [default: fresh if cold]")
    ] = None,
    tokenizer: Annotated[Path | None, _option(_CLIENT, "FILE", "tokenizer.json or its folder.")] = None,
    vocabulary: Annotated[str | None, _option(_CLIENT, "FIRST:END", "Token ids to use in prompts.")] = None,
    timeout: Annotated[
        float | None,
        _option(_CLIENT, "SECONDS", "To the first token. [default: 600]", "--first-token-timeout", min=0.001),
    ] = None,
    out: Annotated[Path | None, _option(_CLIENT, "FILE", "Write raw records here (.jsonl.gz) as they come.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.", rich_help_panel=_CLIENT)] = False,
    slo: o.Slos = None,
    only_model: o.OnlyModel = None,
    format: o.Format = None,
    skip_bad: o.SkipBad = False,
    json: o.Json = False,
) -> None:
    """What a running server does with this trace: latencies, limits kept, and whether the client kept up."""
    from rich.console import Console

    from fwopt.cli.replaying import choose_load, choose_options, find_endpoint, run
    from fwopt.report.replay import as_json, refuse_unseen, render
    from fwopt.search.traffic import load_traffic
    from fwopt.spec.objective import Slo
    from fwopt.workload.writing import check_target

    slos = [Slo.parse(text) for text in slo or []]
    refuse_unseen(slos)
    load = choose_load(rate_scale=rate_scale, closed=closed, poisson=poisson, ramp=ramp, seed=seed)
    options = choose_options(
        requests=limit, cache=cache, salt=salt, tokenizer=tokenizer, vocabulary=vocabulary, think_s=think,
        first_token_timeout_s=timeout, stream_to=out,
    )  # fmt: skip
    if out is not None:
        check_target(out, force=force)
    traffic = load_traffic(trace, format=format, skip_bad=skip_bad, only_model=only_model, rate_scale=1.0)
    endpoint = find_endpoint(
        url, model=model, engine=engine, api=api, key_variable=api_key_env, max_context=max_context
    )
    result = run(endpoint, traffic.workload, load, options)
    if json:
        typer.echo(as_json(result, slos, traffic.notes))
    else:
        Console(highlight=False).print(render(result, slos, traffic.notes))
    if not result.end.complete:
        raise typer.Exit(130)
    if not result.valid:
        raise typer.Exit(1)
