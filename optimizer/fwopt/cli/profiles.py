"""`fwopt profiles`: the store of measured operator times."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fwopt.perf.store import Profile

app = typer.Typer(help="Measured operator times: list, show, import.", no_args_is_help=True)

Folder = Annotated[
    Path | None, typer.Option("--profiles", help="Folder of profiles instead of the shipped ones.", show_default=False)
]


@app.command("list")
def list_profiles(folder: Folder = None) -> None:
    """Profiles at hand, one line each."""
    from rich.console import Console
    from rich.table import Table

    from fwopt.errors import UnmeasuredError
    from fwopt.perf.store import entries, open_profile

    found = [open_profile(path) for _, _, _, path in entries(folder)]
    if not found:
        raise UnmeasuredError(f"no profiles in {folder}; make one with `fwopt profiles import`")
    table = Table(box=None, pad_edge=False)
    for column in ("profile", "digest", "operators", "rows", "licence"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for profile in found:
        tables = profile.environment.tables
        rows = sum(t.rows for t in tables.values())
        licence = profile.environment.licence.split(",")[0]
        table.add_row(profile.name, profile.digest, str(len(tables)), f"{rows:,}", licence)
    Console(width=None, soft_wrap=True).print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="As listed, for example h200/vllm-0.24.0.")], folder: Folder = None
) -> None:
    """Where one profile's times come from, and what was left out."""
    from fwopt.errors import UnknownNameError
    from fwopt.perf.store import entries, open_profile

    known = {f"{device}/{engine}-{version}": path for device, engine, version, path in entries(folder)}
    if name not in known:
        raise UnknownNameError("profile", name, known)
    for line in _lines(open_profile(known[name])):
        typer.echo(line)


def _lines(profile: Profile) -> list[str]:
    e = profile.environment
    lines = [
        f"{profile.name}  digest {profile.digest}",
        f"  device   {e.device_full_name}",
        f"  source   {e.source}",
        f"  licence  {e.licence}",
        *(f"  note     {note}" for note in e.notes),
    ]
    for operator, table in e.tables.items():
        lines.append(f"{operator}: {table.rows:,} rows, {', '.join(table.kernels)}")
        lines += [f"    from     {source}" for source in table.sources]
        lines += [f"    left out {d.rows:,} rows: {d.reason}" for d in table.dropped]
        lines += [f"    note     {note}" for note in table.notes]
    return lines


@app.command("import")
def import_(
    src: Annotated[Path, typer.Argument(help="Folder that holds data/<system>/ in AIConfigurator's layout.")],
    device: Annotated[str, typer.Option(help="Device, for example h200.")],
    out: Annotated[Path, typer.Option(help="Folder to write <device>/<engine>-<version>/ into.")],
    engine: Annotated[str, typer.Option(help="vllm, sglang, ...")] = "vllm",
    version: Annotated[str | None, typer.Option(help="Engine version; the newest when not given.")] = None,
) -> None:
    """Turn operator tables into a compact profile."""
    from fwopt.perf.importer import import_profile
    from fwopt.perf.store import open_profile

    folder = import_profile(src, device, engine, version, out)
    profile = open_profile(folder)
    for operator, table in profile.environment.tables.items():
        left_out = sum(d.rows for d in table.dropped)
        typer.echo(f"{operator}: {table.rows:,} rows" + (f", {left_out:,} left out" if left_out else ""))
    typer.echo(f"wrote {folder} (digest {profile.digest}); `fwopt profiles show {profile.name}` says what was left out")
