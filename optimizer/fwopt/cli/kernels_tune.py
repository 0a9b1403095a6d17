"""`fwopt kernels tune`: the variants of fwopt's kernels that serve one workload best."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fwopt.cli import options as o
from fwopt.errors import InputError, plain

if TYPE_CHECKING:
    from fwopt.cli.what_if import WhatIf
    from fwopt.sim import SimResult
    from fwopt.tuning.tune import Outcome

Op = Annotated[list[str] | None, typer.Option("--op", help="An operator; repeatable; all of them when not given.")]
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def tune(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Recorded requests; see docs/workloads.md.")],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What is deployed: a vLLM --config file, or a run folder of fwopt tune. [default: vLLM's defaults]",
        ),
    ] = None,
    model: o.Model = None,
    hardware: o.Hardware = None,
    engine: o.Engine = None,
    profiles: o.Profiles = None,
    rate_scale: o.RateScale = None,
    only_model: o.OnlyModel = None,
    format: o.Format = None,
    skip_bad: o.SkipBad = False,
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="Where to time; cpu times the torch fallbacks.")
    ] = "cuda",
    op: Op = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time to take: 90s, 10m, 1h.")] = "10m",
    buckets: Annotated[int, typer.Option(min=1, help="Sizes to tune at, per operator, at most.")] = 12,
    seed: Annotated[int, typer.Option(help="Of inputs and of ties in the search.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Profile store to write to. [default: this machine's]")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Tune kernel variants at the shapes that a trace makes a deployment compute, as often as it does."""
    from fwopt.cli.counting import counting
    from fwopt.tuning.demand import demands, uncalled
    from fwopt.tuning.device import describe
    from fwopt.tuning.operators import compiles_ahead, home, targets, vllm_version
    from fwopt.tuning.tune import tune as run

    budget_s = parse_time(budget)
    require_operators(op, targets(), "timed")
    elsewhere = home(op or ())
    version = None if elsewhere is None else vllm_version(elsewhere)
    host = describe(device, elsewhere)
    case = _case(trace, config, model, hardware, engine, profiles, rate_scale, only_model, format, skip_bad)
    result, _ = case.run(count=True)
    assert result.steps is not None
    wanted, notes = demands(
        case.evaluator.cost_model.model, case.candidate, result.steps, case.evaluator.cost_model.engine.name
    )
    wanted = [d for d in wanted if (compiles_ahead(d.family.operator) if op is None else d.family.operator in op)]
    notes = [*uncalled(op or (), wanted), *notes]
    if not wanted:
        raise InputError(f"nothing to tune: {'; '.join(notes)}")
    with counting() as tell:
        found = run(
            wanted, case.evaluator.hardware.device, host, budget_s=budget_s, seed=seed, most=buckets, tell=tell,
            elsewhere=elsewhere,
        )  # fmt: skip
    place = _keep(found, out, version)
    report = _report(case, result, found, notes, place)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    _print(report)


def parse_time(text: str) -> float:
    """`90s`, `10m`, `1h` or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--budget must be a time above zero, for example 90s or 10m, got '{text}'")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def require_operators(names: list[str] | None, known: Mapping[str, str], done: str) -> None:
    """Names that there are, and what kernels are `done` with."""
    from fwopt.errors import UnknownNameError

    for name in names or ():
        if name not in known:
            raise UnknownNameError("operator", name, known)
    for needed in ("torch", "triton"):
        try:
            __import__(needed)
        except ImportError as error:
            missing = (error.name or needed).partition(".")[0]
            raise InputError(
                f"kernels are {done} with torch and Triton, and {missing} is missing; install it with pip install "
                "'fwopt[gpu]'"
            ) from error


def _case(
    trace: Path, config: Path | None, model: str | None, hardware: str | None, engine: str | None,
    profiles: Path | None, rate_scale: float | None, only_model: str | None, format: str | None, skip_bad: bool,
) -> WhatIf:  # fmt: skip
    from fwopt.cli.what_if import prepare_what_if

    candidate = None
    if config is not None and (config.is_dir() or config.name == "plan.json"):
        from fwopt.search.run_folder import read_plan

        plan = read_plan(config)
        if plan.chosen is None:
            raise InputError(f"{config}: this run chose nothing to tune for; name a vLLM config with --config")
        candidate, config = plan.chosen.candidate.model_copy(update={"kernels": None}), None
        model = model or plan.model.name
        hardware = hardware or f"{plan.hardware.device.name}:{plan.hardware.count}"
        engine = engine or f"{plan.engine.name}=={plan.engine.version}"
        rate_scale = plan.rate_scale if rate_scale is None else rate_scale
    return prepare_what_if(
        trace, config=config, model=model, hardware=hardware, replicas=None, router=None,
        rate_scale=1.0 if rate_scale is None else rate_scale, slos=(), price=None, format=format, skip_bad=skip_bad,
        only_model=only_model, profiles=profiles, engine=engine, candidate=candidate,
    )  # fmt: skip


def _keep(found: Outcome, out: Path | None, vllm: str | None) -> Path | None:
    """Into the store, under this machine's device; nothing where nothing was measured."""
    from fwopt.collect.machine import describe, load_words, today
    from fwopt.paths import own_profiles
    from fwopt.targets import load_hardware
    from fwopt.tuning.operators import targets
    from fwopt.tuning.tuned import keep
    from fwopt_kernels.aot import sources

    if not found.rows:
        return None
    here = load_hardware("cpu" if found.host.device == "cpu" else None).device
    return keep(
        out or own_profiles(), here.name, found.host, found.rows,
        {name: sources(targets()[name]) for name in found.rows},
        when=today(), machine=describe() | ({"vllm": vllm} if vllm else {}), load=load_words(),
        command=shlex.join(sys.argv),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scale:
    steps: float
    busy_s: float
    """Simulated time in which replicas were at work."""


def _scale(case: WhatIf, result: SimResult) -> _Scale:
    records = result.records
    span = float(records.finish_s[records.finish_s == records.finish_s].max() - records.arrival_s.min())
    replicas = case.candidate.parallelism.replicas * case.candidate.parallelism.dp
    assert result.steps is not None
    return _Scale(result.steps.steps, result.busy_share * span * replicas)


def _report(case: WhatIf, result: SimResult, found: Outcome, notes: list[str], place: Path | None) -> dict[str, Any]:
    scale = _scale(case, result)
    families = []
    for family in found.families:
        saved = sum(bucket.saved_s for bucket in family.buckets)
        families.append(
            {
                "operator": family.family.operator,
                "format": family.family.format,
                "fixed": dict(family.family.fixed),
                "axes": list(family.family.axes),
                "variants": family.variants,
                "rejected": [{"variant": name, "reason": reason} for name, reason in family.rejected],
                "left_out": family.left_out,
                "gain_us_a_step": 1e6 * saved / scale.steps,
                "gain_share": saved / scale.busy_s,
                "buckets": [
                    {
                        "point": list(b.point),
                        "calls_a_step": b.calls / scale.steps,
                        "default_s": b.default_s,
                        "best_s": b.best_s,
                        "variant": b.variant,
                        "measured": b.measured,
                        "gain_us_a_step": 1e6 * b.saved_s / scale.steps,
                        "gain_share": b.saved_s / scale.busy_s,
                    }
                    for b in family.buckets
                ],
            }
        )
    gains = [f["gain_us_a_step"] for f in families]
    return {
        "candidate": case.candidate.label,
        "model": case.evaluator.cost_model.model.name,
        "simulated_on": case.evaluator.hardware.device.name,
        "timed_on": {"device": found.host.device, "name": found.host.name, "arch": found.host.arch,
                     "triton": found.host.triton, "torch": found.host.torch},
        "steps": scale.steps,
        "busy_s": scale.busy_s,
        "families": families,
        "gain_us_a_step": sum(gains),
        "gain_share": sum(f["gain_share"] for f in families),
        "measurements": found.measurements,
        "spent_s": found.spent_s,
        "complete": found.complete,
        "profile": str(place) if place else None,
        "notes": [*case.notes, *notes],
    }  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    timed = report["timed_on"]
    title = f"{plain(report['model'])}, {report['candidate']}: kernels on {timed['name']}, Triton {timed['triton']}"
    table = Table(box=None, pad_edge=False, title=Text(title), title_justify="left")
    table.add_column("operator", no_wrap=True)
    for column in ("at", "calls a step", "default us", "best us"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    for column in ("gain us/step", "of the time"):
        table.add_column(column, justify="right", no_wrap=True)
    none = "none runs" if report["complete"] else "not reached"
    for family in report["families"]:
        fixed = " ".join(f"{k}{v}" for k, v in family["fixed"].items())
        name = f"{family['operator']} {family['format']} {fixed}"
        for bucket in family["buckets"]:
            table.add_row(name, " x ".join(f"{n:,}" for n in bucket["point"]), f"{bucket['calls_a_step']:.3g}",
                          _us(bucket["default_s"]), _us(bucket["best_s"]), bucket["variant"] or none,
                          f"{bucket['gain_us_a_step']:.2f}", f"{bucket['gain_share']:.2%}")  # fmt: skip
            name = ""
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    typer.echo(
        f"together {report['gain_us_a_step']:.2f} us a step, {report['gain_share']:.2%} of the "
        f"{report['busy_s']:,.0f} s that the simulated engine works ({report['steps']:,.0f} steps); "
        f"{report['measurements']:,} measurements in "
        f"{report['spent_s']:.0f} s"
    )
    if not report["complete"]:
        typer.echo("the budget ended the search; a larger --budget may find more")
    for family in report["families"]:
        name = f"{family['operator']} {family['format']}"
        if family["left_out"]:
            typer.echo(f"{name}: {family['left_out']} variants were not compiled in time")
        for refusal in family["rejected"]:
            typer.echo(f"{name} {refusal['variant']}: {refusal['reason']}")
    for note in report["notes"]:
        typer.echo(f"note: {plain(note)}")
    if report["profile"]:
        typer.echo(f"kept in {report['profile']}")


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:,.2f}"
