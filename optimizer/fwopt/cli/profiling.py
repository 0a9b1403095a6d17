"""What `fwopt profile` does: resolve, refuse what need not or cannot be measured, measure, say what came of it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fwopt.cli.counting import counting
from fwopt.errors import InputError

if TYPE_CHECKING:
    from fwopt.collect.probes import Row
    from fwopt.collect.steps_profile import StepsRun, Subject
    from fwopt.live.endpoint import Endpoint
    from fwopt.perf.step_law import StepLaw
    from fwopt.spec.hardware import HardwareSpec

ROOM_TOKENS = 64
"""For what probes decode."""
LONGEST_UNLESS_ASKED = 4096
"""Contexts beyond take long to measure and much memory to hold."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    engine: str | None
    model: str | None
    hardware: str | None
    url: str | None
    served: str | None
    weights: Path | None
    scheme: str | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    ranks: int
    out: Path | None
    again: bool
    resume: bool
    quick: bool
    allow_busy: bool

    @property
    def place(self) -> Path:
        """The profiles to add to."""
        from fwopt.paths import own_profiles

        return self.out or own_profiles()


def run_steps(asked: Asked) -> None:
    """`fwopt profile`."""
    from fwopt.collect.probes import Limits
    from fwopt.collect.steps_profile import StepsRun

    subject, hardware = _subject(asked)
    known = subject.known(asked.place)
    if known is not None and not asked.again:
        typer.echo(f"{asked.place} has {known.what}, measured {known.date}: nothing to do (--again measures it anew)")
        return
    longest = subject.model.max_context_tokens
    length = min(asked.max_model_len or min(longest, LONGEST_UNLESS_ASKED), longest)
    limits = Limits(asked.max_num_seqs, asked.max_num_batched_tokens, length)
    steps = StepsRun(
        subject, limits, asked.place, quick=asked.quick, resume=asked.resume, allow_busy=asked.allow_busy, say=_say
    )
    steps.before()
    started = time.monotonic()
    folder, law, rows = _served(asked, steps, hardware)
    for line in summary(law, rows):
        typer.echo(line)
    typer.echo(f"wrote {folder} in {time.monotonic() - started:.0f} s")


def length_for(longest_request: int) -> int:
    """Contexts to measure for requests of at most so many tokens: a power of two with room for decode probes."""
    return min(1 << (longest_request + ROOM_TOKENS - 1).bit_length(), LONGEST_UNLESS_ASKED)


def run_missing(
    engine: str | None,
    model: str | None,
    hardware: str | None,
    weights: str | None,
    out: Path | None,
    longest_request: int,
) -> None:
    """`fwopt tune --profile`: the steps of an engine that the profiles lack; of llama.cpp, of every format that lies in
    the weights' folder."""
    from fwopt.search.settings import parse_engine
    from fwopt.spec.candidate import scheme_name
    from fwopt.spec.engine import EngineSpec
    from fwopt.targets.gguf import present

    asked = Asked(
        engine=engine, model=model, hardware=hardware, url=None, served=None, scheme=None,
        weights=Path(weights) if weights else None, max_num_seqs=32, max_num_batched_tokens=2048,
        max_model_len=length_for(longest_request), ranks=1, out=out, again=False, resume=True, quick=False,
        allow_busy=False,
    )  # fmt: skip
    if parse_engine(engine or EngineSpec().name).name != "llamacpp":
        run_steps(asked)
        return
    folder = asked.weights or Path(model or ".")
    found = present(folder, model or "") if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder}: holds no GGUF file of {model}; name the folder that does with --live-model")
    for quantization, path in found:
        run_steps(replace(asked, scheme=scheme_name(quantization), weights=path))


def run_operators(asked: Asked) -> None:
    """`fwopt profile --operators`."""
    from fwopt.collect.operators_profile import OperatorsRun
    from fwopt.targets import load_hardware, load_model

    if asked.model is None:
        raise InputError("name the model whose operators to time, for example --model Qwen/Qwen3-8B")
    model, device = load_model(asked.model), load_hardware(asked.hardware).device
    operators = OperatorsRun(
        model, device, asked.place, ranks=asked.ranks, quick=asked.quick, resume=asked.resume,
        allow_busy=asked.allow_busy, say=_say,
    )  # fmt: skip
    known = operators.known()
    if known is not None and not asked.again:
        typer.echo(f"{asked.place} has {known.what}, measured {known.date}: nothing to do (--again measures it anew)")
        return
    started = time.monotonic()
    with counting() as tell:
        operators.on_task = tell
        folder = operators.measure()
    typer.echo(f"wrote {folder} in {time.monotonic() - started:.0f} s")


def _subject(asked: Asked) -> tuple[Subject, HardwareSpec]:
    from fwopt.collect.attach import running_version
    from fwopt.collect.start import installed_version
    from fwopt.collect.steps_profile import Subject
    from fwopt.perf.steps import StepKey
    from fwopt.search.schemes import parse_scheme
    from fwopt.search.settings import UNVERSIONED, parse_engine
    from fwopt.spec.candidate import scheme_name
    from fwopt.spec.engine import EngineSpec
    from fwopt.targets import load_hardware, load_model
    from fwopt.targets.quantization import native_quantization

    if asked.model is None:
        raise InputError("name the model that the engine runs, for example --model ./SmolLM2-135M-Instruct")
    model, hardware = load_model(asked.model), load_hardware(asked.hardware)
    engine = parse_engine(asked.engine or EngineSpec().name)
    if asked.scheme is None and engine.name == "llamacpp":
        raise InputError("name the format of the GGUF file, for example --scheme gguf-q8_0")
    if asked.engine is None or "==" not in asked.engine or engine.version == UNVERSIONED:
        url, name = asked.url, engine.name
        version = running_version(url, name, asked.served) if url else installed_version(name)
        engine = EngineSpec(name=engine.name, version=version)
    scheme = scheme_name(parse_scheme(asked.scheme) if asked.scheme else native_quantization(model))
    return Subject(model, hardware.device, engine, StepKey(scheme, "bf16", 1)), hardware


def _served(asked: Asked, steps: StepsRun, hardware: HardwareSpec) -> tuple[Path, StepLaw, list[Row]]:
    """Attach to the server named, or start one and end it."""
    from tempfile import TemporaryDirectory

    from fwopt.collect.attach import endpoint_of
    from fwopt.collect.start import server_of

    if asked.url is not None:
        steps.command = f"attached to {asked.url}"
        return _measured(steps, endpoint_of(asked.url, steps.subject.engine.name, asked.served))
    with TemporaryDirectory(prefix="fwopt-profile-") as place:
        weights = str(asked.weights.absolute()) if asked.weights else None
        server, steps.command = server_of(steps.subject, hardware, steps.limits, Path(place), weights)
        _say(f"starting {steps.subject.engine.name} {steps.subject.engine.version}")
        with server as endpoint:
            return _measured(steps, endpoint)


def _measured(steps: StepsRun, endpoint: Endpoint) -> tuple[Path, StepLaw, list[Row]]:
    with counting() as tell:
        steps.on_probe = lambda probe, at, total: tell(probe.name, at, total)
        return steps.measure(endpoint)


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
    beside = f"beside decodes {1e3 * law.beside_step_s:.1f} ms more"
    return [
        f"decode step, ms by sequences (context {d.context[0]:.0f}): {steps}",
        f"prompt of {longest[0]:.0f} tokens: {prompt_s:.2f} s, {longest[0] / prompt_s:,.0f} tokens/s",
        f"on top: request {1e3 * law.request_s:.1f} ms, step with a prompt {1e3 * law.chunk_s:.1f} ms, {beside}",
        f"{len(rows)} points, middle 60 % of repeats within {spread:.0%} (median)",
    ]
