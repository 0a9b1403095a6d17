"""What `fwopt profile` does: resolve, refuse what need not or cannot be measured, measure, say what came of it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fwopt.errors import InputError

if TYPE_CHECKING:
    from fwopt.collect.probes import Probe, Row
    from fwopt.collect.steps_profile import StepsRun, Subject
    from fwopt.live.endpoint import Endpoint
    from fwopt.perf.step_law import StepLaw


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    engine: str | None
    model: str | None
    hardware: str | None
    url: str | None
    scheme: str | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    out: Path | None
    again: bool
    resume: bool
    quick: bool
    allow_busy: bool


def run(asked: Asked) -> None:
    from fwopt.collect.probes import Limits
    from fwopt.collect.steps_profile import StepsRun
    from fwopt.paths import own_profiles

    if asked.url is None:
        raise InputError("name the server to measure, for example --url http://127.0.0.1:8000")
    subject, endpoint = _subject(asked, asked.url.rstrip("/").removesuffix("/v1"))
    out = asked.out or own_profiles()
    known = subject.known(out)
    if known is not None and not asked.again:
        typer.echo(f"{out} has {known.what}, measured {known.date}: nothing to do (--again measures it anew)")
        return
    length = min(asked.max_model_len or subject.model.max_context_tokens, subject.model.max_context_tokens)
    steps = StepsRun(
        subject, Limits(asked.max_num_seqs, asked.max_num_batched_tokens, length), out,
        command=f"attached to {asked.url}", quick=asked.quick, resume=asked.resume, allow_busy=asked.allow_busy,
        say=_say,
    )  # fmt: skip
    steps.before()
    started = time.monotonic()
    folder, law, rows = _measured(steps, endpoint)
    for line in summary(law, rows):
        typer.echo(line)
    typer.echo(f"wrote {folder} in {time.monotonic() - started:.0f} s")


def _subject(asked: Asked, url: str) -> tuple[Subject, Endpoint]:
    from fwopt.collect.attach import running_version, served_name
    from fwopt.collect.steps_profile import Subject
    from fwopt.live.endpoint import Endpoint
    from fwopt.perf.steps import StepKey
    from fwopt.search.schemes import parse_scheme
    from fwopt.search.settings import UNVERSIONED, parse_engine
    from fwopt.spec.candidate import scheme_name
    from fwopt.spec.engine import EngineSpec
    from fwopt.targets import load_hardware, load_model
    from fwopt.targets.quantization import native_quantization

    if asked.model is None:
        raise InputError("name the model that the server runs, for example --model ./SmolLM2-135M-Instruct")
    model, device = load_model(asked.model), load_hardware(asked.hardware).device
    named = parse_engine(asked.engine or EngineSpec().name)
    if asked.engine is None or "==" not in asked.engine:
        named = EngineSpec(name=named.name, version=UNVERSIONED)
    if asked.scheme is None and named.name == "llamacpp":
        raise InputError("name the format of the GGUF file, for example --scheme gguf-q8_0")
    version = named.version if named.version != UNVERSIONED else running_version(url, named.name)
    engine = EngineSpec(name=named.name, version=version)
    scheme = scheme_name(parse_scheme(asked.scheme) if asked.scheme else native_quantization(model))
    subject = Subject(model, device, engine, StepKey(scheme, "bf16", 1))
    return subject, Endpoint(url, served_name(url), engine.name)


def _measured(steps: StepsRun, endpoint: Endpoint) -> tuple[Path, StepLaw, list[Row]]:
    """With progress: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        steps.on_probe = _plainly
        return steps.measure(endpoint)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("measuring", total=len(steps.questions()))
        steps.on_probe = lambda probe, at, total: shown.update(task, completed=at, description=probe.name)
        steps.say = lambda text: shown.console.print(f"fwopt: {text}")
        return steps.measure(endpoint)


def _plainly(probe: Probe, at: int, total: int) -> None:
    if at % 10 == 0:
        _say(f"{at} of {total} questions answered; next {probe.name}")


def _say(text: str) -> None:
    print(f"fwopt: {text}", file=sys.stderr, flush=True)


def summary(law: StepLaw, rows: list[Row]) -> list[str]:
    """The law in the words of someone who runs the engine."""
    import numpy as np

    d = law.decode
    steps = ", ".join(f"{n:.0f}: {1e3 * s:.1f}" for n, s in zip(d.batch, d.seconds[:, 0], strict=True))
    longest = law.tokens[-1:]
    prompt_s = float(law.token(longest)[0] + law.prompt(np.zeros(1), longest)[0])
    spread = np.median([(float(r["p80_s"]) - float(r["p20_s"])) / float(r["p50_s"]) for r in rows])
    return [
        f"decode step, ms by sequences (context {d.context[0]:.0f}): {steps}",
        f"prompt of {longest[0]:.0f} tokens: {prompt_s:.2f} s, {longest[0] / prompt_s:,.0f} tokens/s",
        f"on top: request {1e3 * law.request_s:.1f} ms, step with a prompt {1e3 * law.chunk_s:.1f} ms",
        f"{len(rows)} points, middle 60 % of repeats within {spread:.0%} (median)",
    ]
