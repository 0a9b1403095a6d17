"""What `fwopt bench` was asked for, composed; and how its verdict is shown."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import typer

from fwopt.cli.counting import counting
from fwopt.cli.what_if import prepare_what_if
from fwopt.errors import InputError
from fwopt.regress import store as baselines
from fwopt.regress.compare import compare
from fwopt.regress.outputs import words
from fwopt.regress.outputs.files import write
from fwopt.regress.results import write_result
from fwopt.regress.samplers import sampler_of
from fwopt.regress.samplers.base import Make
from fwopt.regress.session import Session
from fwopt.regress.suite import load_suite
from fwopt.spec.bench import Arm, ArmName, Rules, SimulatedBench, Suite
from fwopt.spec.bench_result import Result
from fwopt.spec.comparison import Comparison, Verdict

EXIT: dict[Verdict, int] = {"pass": 0, "fail": 1}


def load(path: Path, *, min_effect: str | None, budget_s: float | None) -> Suite:
    """A SUITE.yaml; of a run folder, its chosen deployment in simulation."""
    if path.is_dir():
        from fwopt.search.run_folder import read_plan

        read_plan(path)
        bench = SimulatedBench(name="chosen", run=path.resolve())
        suite = Suite(name="run", benches=(bench,), arms={"head": Arm()})
    else:
        suite = load_suite(path)
    rules = ruled(suite.rules, min_effect=min_effect)
    if budget_s is not None:
        rules = rules.model_copy(update={"budget_s": budget_s})
    return suite.model_copy(update={"rules": rules})


def ruled(rules: Rules, *, min_effect: str | None) -> Rules:
    """The rules, with what the command line states."""
    if min_effect is None:
        return rules
    try:
        value = float(min_effect.strip().removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 < value < 10:
        raise InputError(f"--min-effect must be a percentage above zero, for example 3%, got '{min_effect}'")
    return rules.model_copy(update={"min_effect": value})


def measure(suite: Suite, commits: Mapping[ArmName, str | None], out: Path) -> dict[ArmName, Result]:
    """Measure, and keep each arm's result."""
    known = {arm: commits.get(arm) or _head_of(how.cwd or Path.cwd()) for arm, how in suite.arms.items()}
    with ExitStack() as stack, counting() as tell:
        samplers = {bench.name: stack.enter_context(_maker(bench.kind)(bench, suite.arms)) for bench in suite.benches}
        session = Session(suite, samplers, known, tell)
        results = session.run()
    for arm, result in results.items():
        write_result(result, out / f"{arm}.json")
    if session.interrupted:
        typer.echo("fwopt: stopped early; what was measured is judged", err=True)
    return results


def _maker(kind: str) -> Make:
    made = sampler_of(kind)
    return partial(made, prepare=prepare_what_if) if kind == "simulated" else made  # type: ignore[call-arg]


def _head_of(folder: Path) -> str | None:
    """Commit that the folder is at; None outside of git."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def compared(base: Result, head: Result, rules: Rules, *, across: Collection[str] | None) -> Comparison:
    return compare(base, head, rules, across=across or ())


def compared_with(store: Path, head: Result, rules: Rules, *, across: Collection[str] | None) -> Comparison:
    """Against what is promoted in a store, with the sessions before it."""
    base, history = baselines.baseline_for(head, store, rules, across or ())
    note = f"compared with {len(history)} sessions of the baseline"
    return compare(base, head, rules, history=history, across=across or (), notes=(note,))


def show_single(head: Result, out: Path, *, as_json: bool) -> None:
    """One arm, nothing to compare with: what was measured; a run with no samples is a failure."""
    from fwopt.regress.store import series_of

    rows = [(b.name, m, series_of([head], b.name, m.name)[0]) for b in head.benches for m in b.metrics]
    if as_json:
        typer.echo(head.model_dump_json())
    else:
        for bench, metric, value in rows:
            typer.echo(f"{bench:<24} {metric.name:<18} {words.value(value, metric.unit)}")
        typer.echo(f"{out / 'head.json'}: keep it with `fwopt bench baseline save {out / 'head.json'}`")
    missing = [f"{bench} {metric.name}" for bench, metric, value in rows if value is None]
    if missing:
        problems = [r.problem for b in head.benches for r in b.runs if r.problem]
        said = f": {problems[-1]}" if problems else ""
        typer.echo(f"fwopt: no samples of {missing[0]}{said}", err=True)
        raise typer.Exit(1)


def finish(found: Comparison, out: Path | None, *, as_json: bool, inconclusive_exit: int) -> None:
    """Write, show, and exit by the verdict."""
    files = write(found, out) if out is not None else []
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        _show(found, files)
    raise typer.Exit(EXIT.get(found.verdict, inconclusive_exit))


def _show(found: Comparison, files: list[Path]) -> None:
    typer.echo(words.headline(found))
    for m in found.metrics:
        values = f"{words.value(m.base, m.unit)} -> {words.value(m.head, m.unit)}"
        typer.echo(f"  {m.verdict:<12} {m.bench} {m.metric}: {values}, for the worse {words.change(m)}; {m.reason} "
                   f"(minimum {words.least(m)}, {m.blocks} blocks)")  # fmt: skip
    for bench, parts in found.explanation.items():
        if any(m.bench == bench and m.verdict != "pass" for m in found.metrics):
            typer.echo(f"  {bench} moved: " + "; ".join(words.part(p) for p in parts[:4]))
    for line in [*found.notes, *map(str, files)]:
        typer.echo(f"  {line}")
