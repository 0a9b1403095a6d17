"""`fwopt calibrate`: what live replays teach of this machine's step times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o


def calibrate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that `fwopt verify` measured.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")] = Path("calibration.yaml"),
    profiles: o.Profiles = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    json: o.Json = False,
) -> None:
    """Fit few factors on step times to live replays; `fwopt tune --calibration FILE` plans with them.

    Example: fwopt calibrate reports/monday reports/tuesday --out this-machine.yaml
    """
    import yaml

    from fwopt.atomic import written_whole
    from fwopt.errors import InputError
    from fwopt.search.job import reopen
    from fwopt.search.run_folder import read_inputs
    from fwopt.verify import calibrating

    if out.exists() and not force:
        raise InputError(f"{out} exists; name another file with --out, or overwrite it with --force")
    measured = []
    for run in runs:
        inputs = read_inputs(run).model_copy(update={"machine": None})  # fitted anew, on the profile's own times
        job = reopen(inputs, trace=None, profiles=profiles, folder=run)
        measured += calibrating.measured_in(run, job)
    found = calibrating.calibrate(measured)
    with written_whole(out) as beside:
        beside.write_text(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    typer.echo(
        f"steps that stream weights x{found.decode:.3f}, arithmetic x{found.prefill:.3f}, "
        f"requests {found.request_s * 1e3:+.1f} ms; from {len(measured)} replay{'s' * (len(measured) > 1)}"
    )
    for name, before in found.error_before.items():
        typer.echo(f"  {name:<11} off by {before:.1%} before, {found.error_after[name]:.1%} on the same runs with it")
    typer.echo(f"{out}: plan with it: fwopt tune ... --calibration {out}")
