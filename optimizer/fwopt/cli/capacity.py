"""`fwopt capacity`: how much more of this traffic a deployment takes before a limit breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o


def capacity(
    what: Annotated[Path, typer.Argument(metavar="RUN|CONFIG", help="Run folder, or a vLLM config file.")],
    trace: Annotated[Path | None, typer.Argument(metavar="TRACE", help="Trace. [default: the run's own]")] = None,
    model: o.Model = None,
    hardware: o.Hardware = None,
    price: o.Price = None,
    profiles: o.Profiles = None,
    slo: o.Slos = None,
    replicas: o.Replicas = None,
    rate_scale: o.RateScale = None,
    only_model: o.OnlyModel = None,
    format: o.Format = None,
    skip_bad: o.SkipBad = False,
    workers: o.Workers = None,
    json: o.Json = False,
) -> None:
    """Scale the arrival rate until the first limit breaks: headroom, requests/s and $/1M tokens at that edge.

    Example: fwopt capacity reports/azure-qwen3-8b-h200x8
    """
    from fwopt.cli import measuring

    given: dict[str, object] = {
        "model": model,
        "hardware": hardware,
        "price": price,
        "replicas": replicas,
        "format": format,
    }
    given |= {"only_model": only_model, "rate_scale": rate_scale, "profiles": profiles}
    if what.is_dir() or what.name == "plan.json":
        cases = measuring.of_run(what, trace, slo or [], skip_bad, given)
    else:
        cases = measuring.of_config(what, trace, slo or [], skip_bad, given)
    found = measuring.measure(cases, workers)
    if json:
        typer.echo(measuring.as_json(found))
        return
    measuring.show(found)
