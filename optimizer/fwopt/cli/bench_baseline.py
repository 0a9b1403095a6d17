"""`fwopt bench baseline`, `history` and `report`: results kept in a folder under version control."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o

app = typer.Typer(help="Results kept under version control.", no_args_is_help=True)

Store = Annotated[Path, typer.Option("--store", metavar="FOLDER", help="Baselines, a folder in git.")]
Suite = Annotated[str | None, typer.Option("--suite", metavar="NAME", help="Only this suite.")]
_STORE = Path("bench/baselines")


@app.callback()
def _group() -> None:
    """Results kept under version control."""


@app.command()
def save(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="A result of `fwopt bench run`.")],
    store: Store = _STORE,
    promote: Annotated[bool, typer.Option("--promote", help="Compare others with it from now on.")] = False,
) -> None:
    """Add a result to the history of its key: hardware, engine, model, workload and configuration."""
    from fwopt.regress import store as baselines
    from fwopt.regress.results import read_result

    path = baselines.save(read_result(result), store)
    if promote:
        baselines.promote(path, store)
    typer.echo(path)


@app.command()
def promote(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A saved result.")], store: Store = _STORE
) -> None:
    """Make a saved result the one that others of its key are compared with."""
    from fwopt.regress import store as baselines

    baselines.promote(path, store)
    typer.echo(path)


@app.command("list")
def list_(store: Store = _STORE, suite: Suite = None, json: o.Json = False) -> None:
    """What is there, oldest first; `*` is promoted."""
    from fwopt.regress.kinship import key_digest
    from fwopt.regress.store import listed

    found = listed(store, suite)
    if json:
        rows = [
            {"file": str(s.path), "suite": s.result.suite, "key": key_digest(s.result), "promoted": s.promoted,
             "commit": s.result.commit, "made_at": s.result.made_at,
             "benches": {b.name: b.key.model_dump() for b in s.result.benches}}
            for s in found
        ]  # fmt: skip
        typer.echo(jsonlib.dumps(rows, indent=1))
        return
    for s in found:
        key = s.result.benches[0].key if s.result.benches else None
        what = f"{key.hardware}, {key.engine}, {key.model}" if key else "no benches"
        typer.echo(f"{'*' if s.promoted else ' '} {s.path}  {s.result.made_at}  {what}")


def history(store: Store = _STORE, suite: Suite = None, json: o.Json = False) -> None:
    """When each metric changed for good, and the commits between which it did."""
    from fwopt.regress.history import histories
    from fwopt.regress.outputs import words
    from fwopt.regress.store import listed

    found = histories(listed(store, suite))
    if json:
        typer.echo(jsonlib.dumps([s.model_dump(mode="json") for s in found], indent=1))
        return
    for s in found:
        last = words.value(s.values[-1], s.unit) if s.values else "never measured"
        typer.echo(f"{s.suite} {s.bench} {s.metric}: {len(s.values)} sessions, last {last}")
        for change in s.changes:
            typer.echo(
                f"  {words.signed(change.effect)} {'worse' if change.effect > 0 else 'better'} after {change.after}, "
                f"no later than {change.up_to} ({len(change.commits)} commit{'s' * (len(change.commits) != 1)})"
            )


def report(
    store: Store = _STORE,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Page to write.")] = Path("bench-trend.html"),
    suite: Suite = None,
) -> None:
    """Write the trend page: every metric over its sessions."""
    from fwopt.regress.history import histories
    from fwopt.regress.outputs.trend import page
    from fwopt.regress.results import write_text
    from fwopt.regress.store import listed

    write_text(out, page(histories(listed(store, suite))))
    typer.echo(out)
