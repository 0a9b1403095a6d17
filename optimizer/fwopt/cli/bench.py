"""`fwopt bench`: is this build slower than that one. `baseline` is in `bench_baseline.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.cli import options as o
from fwopt.cli.bench_baseline import app as baseline
from fwopt.cli.bench_baseline import history, report

app = typer.Typer(help="Is this build slower than that one: pass, fail or inconclusive.", no_args_is_help=True)

MinEffect = Annotated[
    str | None, typer.Option("--min-effect", metavar="PERCENT", help="Change that matters. [default: from A/A runs]")
]
Across = Annotated[
    list[str] | None,
    typer.Option("--across", metavar="FIELD", help="What the test is of: engine, model or config; repeatable."),
]
Inconclusive = Annotated[
    int,
    typer.Option("--inconclusive-exit", metavar="N", min=0, max=255, help="Exit status of an inconclusive verdict."),
]


@app.callback()
def _group() -> None:
    """Is this build slower than that one: pass, fail or inconclusive."""


@app.command()
def run(
    suite: Annotated[Path, typer.Argument(metavar="SUITE", help="SUITE.yaml (docs/bench.md), or a run folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where results go.")] = Path("bench-out"),
    store: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="STORE", help="Without a base arm: compare with what is promoted there."),
    ] = None,
    commit: Annotated[str | None, typer.Option(metavar="ID", help="Of head's code. [default: git's HEAD]")] = None,
    base_commit: Annotated[str | None, typer.Option(metavar="ID", help="Of base's. [default: git's HEAD]")] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="SECONDS", min=0.001, help="No block begins later.")
    ] = None,
    min_effect: MinEffect = None,
    across: Across = None,
    inconclusive_exit: Inconclusive = 3,
    json: o.Json = False,
) -> None:
    """Measure a suite, both arms interleaved where it has two, until every metric is decided or the budget is spent.

    Example: fwopt bench run bench/suite.yaml --out bench-out
    """
    from fwopt.cli import benching
    from fwopt.errors import InputError

    given = benching.load(suite, min_effect=min_effect, budget_s=budget)
    if store is not None and "base" in given.arms:
        raise InputError("--baseline goes with a suite of one arm; this one measures a base of its own")
    results = benching.measure(given, {"base": base_commit, "head": commit}, out)
    base, head = results.get("base"), results["head"]
    if base is not None:
        found = benching.compared(base, head, given.rules, across=across)
    elif store is not None:
        found = benching.compared_with(store, head, given.rules, across=across)
    else:
        benching.show_single(head, out, as_json=json)
        return
    benching.finish(found, out, as_json=json, inconclusive_exit=inconclusive_exit)


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A result, or a store of baselines.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="A result.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write JUnit, Markdown and the rest here.")
    ] = None,
    min_effect: MinEffect = None,
    across: Across = None,
    inconclusive_exit: Inconclusive = 3,
    json: o.Json = False,
) -> None:
    """Hold two stored results against each other.

    Example: fwopt bench compare bench-out/base.json bench-out/head.json --json
    """
    from fwopt.cli import benching
    from fwopt.regress.results import read_result

    result = read_result(head)
    rules = benching.ruled(result.rules, min_effect=min_effect)
    if base.is_dir():
        found = benching.compared_with(base, result, rules, across=across)
    else:
        found = benching.compared(read_result(base), result, rules, across=across)
    benching.finish(found, out, as_json=json, inconclusive_exit=inconclusive_exit)


app.add_typer(baseline, name="baseline")
app.command()(history)
app.command()(report)
