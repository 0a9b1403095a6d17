"""The `fwopt` command: one small file a verb; heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer

from fwopt import __version__
from fwopt.errors import FwoptError

VERBS: dict[str, tuple[str, str]] = {
    "tune": ("fwopt.cli.tune:tune", "Plan"),
    "inspect": ("fwopt.cli.inspect:inspect", "Workload"),
    "convert": ("fwopt.cli.convert:convert", "Workload"),
    "simulate": ("fwopt.cli.simulate:simulate", "Plan"),
    "capacity": ("fwopt.cli.capacity:capacity", "Plan"),
    "report": ("fwopt.cli.report:report", "Run folder"),
    "export": ("fwopt.cli.export:export", "Run folder"),
    "explain": ("fwopt.cli.explain:explain", "Run folder"),
    "models": ("fwopt.cli.catalogue:models", "Catalogues"),
    "hardware": ("fwopt.cli.catalogue:hardware", "Catalogues"),
    "schema": ("fwopt.cli.schema:schema", "Catalogues"),
}
GROUPS: dict[str, tuple[str, str]] = {
    "profiles": ("fwopt.cli.profiles:app", "Catalogues"),
}

app = typer.Typer(
    name="fwopt",
    help="Plan LLM serving from the requests you really serve: trace in, deployment config and evidence out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fwopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan LLM serving from the requests you really serve: trace in, deployment config and evidence out."""


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _register() -> None:
    for name, (target, panel) in VERBS.items():
        app.command(name, rich_help_panel=panel)(_load(target))
    for name, (target, panel) in GROUPS.items():
        app.add_typer(_load(target), name=name, rich_help_panel=panel)


def main() -> None:
    """Entry point: expected errors are one line on stderr and exit status 2; bugs keep their traceback."""
    _register()
    try:
        app()
    except FwoptError as error:
        print(f"fwopt: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
