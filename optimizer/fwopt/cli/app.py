"""The `fwopt` command: one small file a verb; heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import importlib
import signal
import sys
from collections import Counter
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from fwopt import __version__
from fwopt.errors import FwoptError, plain

VERBS: dict[str, tuple[str, str]] = {
    "tune": ("fwopt.cli.tune:tune", "Find the best deployment for a recorded trace."),
    "simulate": ("fwopt.cli.simulate:simulate", "Replay a trace on one given deployment."),
    "replay": ("fwopt.cli.replay:replay", "Send a trace to a running server and measure it."),
    "capacity": ("fwopt.cli.capacity:capacity", "Find how much traffic a deployment bears."),
    "record": ("fwopt.cli.record:record", "Record a trace as a proxy in front of a server."),
    "verify": ("fwopt.cli.verify:verify", "Replay a plan on a real server: measured beside promised."),
    "calibrate": ("fwopt.cli.calibrate:calibrate", "Learn this machine's step times from live replays."),
    "inspect": ("fwopt.cli.inspect:inspect", "Describe a trace."),
    "profile": ("fwopt.cli.profile:profile", "Measure an engine's step times on this machine."),
    "quality": ("fwopt.cli.quality:quality", "Measure what quantization costs a model on a text."),
    "speculation": ("fwopt.cli.speculation:speculation", "Measure how often guessed tokens are right on a text."),
    "evals": ("fwopt.cli.evals:evals", "Grade a server's answers to an eval set, beside a reference's."),
    "ab": ("fwopt.cli.ab:ab", "Hold two servers against each other: latency and quality."),
    "quantize": ("fwopt.cli.quantize:quantize", "Write a model in a cheaper precision, with what that costs."),
    "convert": ("fwopt.cli.convert:convert", "Write a trace in fwopt's own format."),
    "serve": ("fwopt.cli.serve:serve", "Run the reference engine behind an OpenAI-compatible API."),
    "score": ("fwopt.cli.score:score", "Hold predictions against measured serving results."),
    "report": ("fwopt.cli.report:report", "Show a run and write its report again."),
    "explain": ("fwopt.cli.explain:explain", "Say why a candidate was chosen or fell."),
    "export": ("fwopt.cli.export:export", "Write a run's deployment files again."),
    "models": ("fwopt.cli.catalogue:models", "List the models whose shape is known."),
    "hardware": ("fwopt.cli.catalogue:hardware", "List GPUs with dated prices."),
    "schema": ("fwopt.cli.schema:schema", "Print a JSON Schema."),
}
"""Verb -> where it lives, and its line in `fwopt --help`."""
GROUPS: dict[str, tuple[str, str]] = {
    "bench": ("fwopt.cli.bench:app", "Is this build slower than that one: pass, fail or inconclusive."),
    "profiles": ("fwopt.cli.profiles:app", "Measured operator times: list, show, import."),
    "kernels": ("fwopt.cli.kernels:app", "fwopt's Triton kernels: check and tune."),
}

app = typer.Typer(
    name="fwopt",
    help="Plan LLM serving from the requests you really serve: trace in, deployment config and evidence out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich help costs more than everything else that `fwopt --help` does
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


_UsageError: Any = typer.BadParameter.__base__
"""What a malformed command line raises; typer carries its own copy of click, or imports it, by version."""


class Command(TyperCommand):
    """A verb. An option that takes one value stands once on its command line: of two, the last would win unseen."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        left = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(given)
        for option, times in Counter(order).items():
            if times > 1 and isinstance(option, TyperOption) and not (option.multiple or option.is_flag):
                names = " or ".join(option.opts)
                raise _UsageError(f"Option {names} takes one value, and is given {times} times", ctx=ctx)
        return left


def _register() -> None:
    for name, (target, summary) in VERBS.items():
        app.command(name, short_help=summary)(_load(target))
    for name, (target, summary) in GROUPS.items():
        app.add_typer(_load(target), name=name, short_help=summary)
    for verbs in (app, *(group.typer_instance for group in app.registered_groups)):
        for verb in verbs.registered_commands if verbs is not None else ():
            verb.cls = Command


def _explain(error: Any) -> int:
    """One line for a malformed command line; the help where a command was named without anything else."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    text = plain(" ".join(error.format_message().split())).replace("Input should be", "must be").rstrip(".")
    where = error.ctx.command_path if error.ctx is not None else "fwopt"
    print(f"fwopt: {text}; see {where} --help", file=sys.stderr)
    return 2


def _unwind_on_signal() -> None:
    """SIGTERM, and SIGHUP unless it is ignored, end the verb as an exception does: what is half written goes with it.
    A second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def main() -> None:
    """Entry point: expected errors are one line on stderr and exit status 2; bugs keep their traceback."""
    _unwind_on_signal()
    _register()
    try:
        sys.exit(app(prog_name="fwopt", standalone_mode=False) or 0)
    except FwoptError as error:
        print(f"fwopt: {plain(' '.join(str(error).splitlines()))}", file=sys.stderr)
        sys.exit(2)
    except _UsageError as error:
        sys.exit(_explain(error))
    except typer.Abort:
        print("fwopt: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
