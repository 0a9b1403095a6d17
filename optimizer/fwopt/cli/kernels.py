"""`fwopt kernels`: the Triton kernels in `fwopt_kernels`; `tune` and `export` are in files of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fwopt.cli.counting import counting
from fwopt.cli.kernels_export import export
from fwopt.cli.kernels_tune import Op, require_operators, tune

if TYPE_CHECKING:
    from fwopt_kernels.aot import Job, Outcome

app = typer.Typer(help="fwopt's Triton kernels: what compiles for a GPU, what is fastest there.", no_args_is_help=True)

Sample = Annotated[
    int | None, typer.Option(min=1, help="Per operator and format, its defaults and N - 1 others drawn at random.")
]


@app.callback()
def _group() -> None:
    """fwopt's Triton kernels: what compiles for a GPU, what is fastest there."""


app.command()(tune)
app.command()(export)


@app.command()
def check(
    arch: Annotated[str, typer.Option(help="sm_80, sm_89, sm_90 or sm_100.")] = "sm_90",
    op: Op = None,
    sample: Sample = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Compile every variant for a GPU that need not be here; say which it could not run, and why."""
    jobs, unsupported = _jobs(arch, op, sample)
    reports = _reports(jobs, _compiled(jobs), unsupported)
    if as_json:
        typer.echo(json.dumps({"arch": arch, "operators": reports}, indent=1))
    else:
        _print(arch, reports)
    broken = [r["operator"] for r in reports if any(f["default"]["error"] for f in r["formats"])]
    if broken:
        print(f"fwopt: the default variant cannot run on {arch}: {', '.join(broken)}", file=sys.stderr)
        raise typer.Exit(1)


def _jobs(arch: str, names: list[str] | None, sample: int | None) -> tuple[list[Job], dict[str, list[str]]]:
    """What to compile, each default first; and each operator's formats that `arch` cannot run."""
    import random

    from fwopt.errors import UnknownNameError
    from fwopt_kernels.contract import ARCHITECTURES, supported
    from fwopt_kernels.registry import OPERATORS, load

    if arch not in ARCHITECTURES:
        raise UnknownNameError("GPU architecture", arch, ARCHITECTURES)
    require_operators(names, OPERATORS, "compiled")
    from fwopt_kernels.aot import Job

    operators = {name: load(OPERATORS[name]) for name in dict.fromkeys(names or OPERATORS)}
    jobs: list[Job] = []
    unsupported: dict[str, list[str]] = {name: [] for name in operators}
    for name, operator in operators.items():
        for format in operator.formats:
            if not supported(format, ARCHITECTURES[arch]):
                unsupported[name].append(format)
                continue
            space = operator.space(format)
            others = [v for v in space.variants() if v not in space.defaults]
            if sample is not None:
                others = random.Random(0).sample(others, min(sample - 1, len(others)))
            jobs += [Job(OPERATORS[name], format, variant, arch) for variant in (*space.defaults, *others)]
    return jobs, unsupported


def _compiled(jobs: list[Job]) -> dict[Job, Outcome]:
    """Outcomes by job."""
    from fwopt_kernels.aot import compile_all

    outcomes: dict[Job, Outcome] = {}
    with counting() as tell:
        for outcome in compile_all(jobs):
            outcomes[outcome.job] = outcome
            tell("compiling variants", len(outcomes), len(jobs))
    return outcomes


def _reports(jobs: Iterable[Job], outcomes: dict[Job, Outcome], unsupported: dict[str, list[str]]) -> list[Any]:
    from fwopt_kernels.registry import OPERATORS

    reports = []
    for name in unsupported:
        formats: dict[str, list[Outcome]] = {}
        for job in jobs:
            if job.target == OPERATORS[name]:
                formats.setdefault(job.format, []).append(outcomes[job])
        mine = [outcome for group in formats.values() for outcome in group]
        failures = [_row(o, o.failure) for o in mine if o.failure]
        rejections = [_row(o, o.rejection) for o in mine if o.rejection]
        reports.append(
            {
                "operator": name,
                "variants": len(mine),
                "compiled": sum(o.failure is None for o in mine),
                "rejected": len(rejections),
                "failed": len(failures),
                "rejections": rejections,
                "failures": failures,
                "formats": [_format(format, group) for format, group in formats.items()],
                "unsupported_formats": unsupported[name],
            }
        )
    return reports


def _row(outcome: Outcome, reason: str | None) -> dict[str, str | None]:
    return {"format": outcome.job.format, "variant": outcome.job.variant.id, "reason": reason}


def _format(format: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts of one format and what its default takes: the most of any of its kernels. The default of large sizes,
    where that is another, must run as well."""
    from fwopt_kernels.registry import load

    default = outcomes[0]
    defaults = load(default.job.target).space(format).defaults
    broken = [o.failure or o.rejection for o in outcomes if o.job.variant in defaults]
    return {
        "format": format,
        "variants": len(outcomes),
        "compiled": sum(o.failure is None for o in outcomes),
        "rejected": sum(o.rejection is not None for o in outcomes),
        "failed": sum(o.failure is not None for o in outcomes),
        "default": {
            "variant": default.job.variant.id,
            "registers": max((k.registers for k in default.kernels), default=None),
            "shared_bytes": max((k.shared_bytes for k in default.kernels), default=None),
            "error": next((reason for reason in broken if reason), None),
        },
    }


def _print(arch: str, reports: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=f"Kernels compiled for {arch}", title_justify="left")
    words = ("operator", "format", "default")
    numbers = ("variants", "compiled", "rejected", "failed", "registers", "shared bytes")
    for column in words:
        table.add_column(column, no_wrap=column != "default", overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    for report in reports:
        for f in report["formats"]:
            default = f["default"]
            counts = [f[word] for word in numbers[:4]] + [default["registers"], default["shared_bytes"]]
            shown = ("-" if n is None else f"{n:,}" for n in counts)
            table.add_row(report["operator"], f["format"], default["variant"], *shown)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for report in reports:
        name = report["operator"]
        for format in report["unsupported_formats"]:
            typer.echo(f"{name} {format}: {arch} has no conversions to e4m3; they begin with sm_89")
        for rows, word in ((report["rejections"], "rejected"), (report["failures"], "failed")):
            for row in rows:
                typer.echo(f"{name} {row['format']} {row['variant']}: {word}: {row['reason']}")
