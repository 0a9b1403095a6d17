"""`fwopt quantize --scheme mixed`: the mixture chosen, before it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fwopt.cli.quantizing import Asked, Tell, calibration_request, choices_of, is_run, to_measure
from fwopt.errors import InputError

if TYPE_CHECKING:
    from fwopt.quality.schemes import Scheme
    from fwopt.quantize.bands import Band
    from fwopt.quantize.produce import Order
    from fwopt.quantize.steps import Steps
    from fwopt.quantize.times import Times

VLLM = "vllm"


def mixed_order(order: Order, model: str, asked: Asked, tell: Tell) -> Order:
    """Measured group by group on --calibrate, timed, chosen, verified; --text measures what comes out."""
    from fwopt.quantize.bands import bands
    from fwopt.quantize.mix import Mixer

    if asked.max_kl is None or asked.times is None:
        raise InputError(
            "--scheme mixed needs a budget and times: add --max-kl 0.01, and --times PROFILE, or --times vllm to time "
            "its linear layers here"
        )
    schemes, chooses = choices_of(asked), calibration_request(order.source, asked)
    measure = to_measure(model, None, asked)
    where = bands(order.source, asked.band)
    _check_fits(where, schemes)
    times = _times(asked, where, schemes, order, tell)
    scheme, mixture = Mixer(chooses, where, schemes, times, tell).choose(asked.max_kl)
    if measure is not None:
        measure = replace(measure, schemes=(scheme,))
    return replace(order, scheme=scheme, mixture=mixture, measure=measure)


def _times(asked: Asked, where: list[Band], schemes: tuple[Scheme, ...], order: Order, tell: Tell) -> Times:
    from fwopt.quantize.times import from_measured, from_profile, measure_vllm
    from fwopt.spec.base import content_hash

    steps, given = _steps(asked, order.source, tell), asked.times
    assert given is not None
    if given.is_dir():
        return from_profile(given, where, schemes, steps)
    if str(given) != VLLM:
        return from_measured(given, where, schemes, steps)
    order.home.mkdir(parents=True, exist_ok=True)
    wanted = [[band.name for band in where], [s.name for s in schemes], steps.sizes()]
    kept = order.home / f"vllm-times-{content_hash(wanted)}.json"
    measure_vllm(where, schemes, steps, kept, tell)
    return from_measured(kept, where, schemes, steps)


def _steps(asked: Asked, source: Path, tell: Tell) -> Steps:
    """By hand where they are given, else those of the run."""
    from fwopt.quantize.steps import parse_steps, steps_of_run

    run = Path(asked.model if asked.step is None else asked.step)
    if is_run(run):
        tell(f"simulating the steps of {run}", 0, 0)
        return steps_of_run(run, source)
    if asked.step is None:
        raise InputError(
            "--scheme mixed weighs times over the steps of a workload: give a run of `fwopt tune` in place of MODEL, "
            "or --step RUN, or --step TOKENS:SHARE,…"
        )
    return parse_steps(asked.step)


def _check_fits(where: list[Band], schemes: tuple[Scheme, ...]) -> None:
    for scheme in schemes:
        for band in where:
            for divisor in scheme.divisors:
                bad = next((p.k for p in band.products if p.k % divisor), None)
                if bad is not None:
                    raise InputError(f"--choices {scheme.name}: {band.group} is {bad} wide, no multiple of {divisor}")
