"""What `fwopt quantize` was asked for, checked before anything is computed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fwopt.cli.comparing_quality import request
from fwopt.errors import InputError, UnknownNameError
from fwopt.paths import own_quality
from fwopt.quality.schemes import SCHEMES, Scheme, parse_schemes
from fwopt.targets.config import Config

if TYPE_CHECKING:
    from fwopt.quality.study import Request
    from fwopt.quantize.calibrated import Calibration
    from fwopt.quantize.produce import Order
    from fwopt.spec.candidate import Quantization

Tell = Callable[[str, int, int], None]
MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    model: str
    out: Path
    scheme: str | None
    text: tuple[Path, ...]
    workload: tuple[Path, ...]
    calibrate: tuple[Path, ...]
    calibrate_tokens: int
    max_tokens: int
    window: int
    choices: str
    max_kl: float | None
    times: Path | None
    step: str | None
    band: int
    gguf_from: Path | None
    seed: int
    home: Path | None


def make_order(asked: Asked, tell: Tell) -> Order:
    """Everything resolved; a mixture is chosen here, which takes as long as measuring it."""
    from fwopt.quantize.produce import Order

    model, name = _model_and_scheme(asked)
    if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
        raise InputError(f"{asked.out}: is there already; choose another --out, or remove it")
    home, command = asked.home or own_quality(), shlex.join(["fwopt", *sys.argv[1:]])
    source, known_as = _source(model)
    order = Order(known_as, source, asked.out, home, command)
    if name.startswith("gguf-"):
        return _gguf(order, name, asked)
    calibrated = _calibrated(name, source, asked)
    if calibrated is not None:
        return replace(order, calibration=calibrated, measure=to_measure(model, None, asked))
    if name == MIXED:
        from fwopt.cli.mixing import mixed_order

        return mixed_order(order, model, asked, tell)
    scheme = _plain(name)
    return replace(order, scheme=scheme, measure=to_measure(model, name, asked))


def _plain(name: str) -> Scheme:
    if name not in SCHEMES:
        raise UnknownNameError(
            "scheme", name, [*SCHEMES, MIXED], "or gptq-, awq-, smoothquant- before one, or gguf-TYPE"
        )
    if SCHEMES[name].weights is None:
        raise InputError(f"--scheme {name}: leaves the weights as they are, so there is nothing to write")
    return SCHEMES[name]


def _model_and_scheme(asked: Asked) -> tuple[str, str]:
    folder = Path(asked.model)
    if not is_run(folder):
        if asked.scheme is None:
            raise InputError("--scheme is needed: name one, or give the folder of a run that chose one")
        return asked.model, asked.scheme
    from fwopt.search.run_folder import read_plan

    plan = read_plan(folder)
    if plan.chosen is None:
        raise InputError(f"{folder}: this run chose nothing; name a model and a --scheme")
    return plan.model.name, asked.scheme or scheme_of(plan.chosen.candidate.quantization)


def is_run(path: Path) -> bool:
    return (path / "plan.json").is_file()


def scheme_of(quantization: Quantization) -> str:
    """As `fwopt quality` names it; precisions that need nothing to be written are refused."""
    from fwopt.spec.candidate import scheme_name

    name = scheme_name(quantization)
    if quantization.kind == "bf16":
        raise InputError("the run chose bf16: the model can be served as it is, nothing needs to be written")
    if quantization.kind == "mxfp4" or (quantization.kind == "w4a16" and quantization.scope == "experts"):
        raise InputError(f"the run chose {name} as published: serve that checkpoint itself")
    if quantization.kind == "w4a16" and quantization.group_size != 128:
        return f"w4a16-g{quantization.group_size}"
    return name


def _source(model: str) -> tuple[Path, str]:
    from fwopt.targets.models import find_config

    config, name, source = find_config(model)
    if source.startswith("catalogue"):
        raise InputError(f"{model}: only its shape is known here ({source}); give a folder with its weights")
    return config.parent, Path(name).resolve().name if Path(name).exists() else name


def _gguf(order: Order, name: str, asked: Asked) -> Order:
    from fwopt.quantize.gguf import GgufTools
    from fwopt.search.schemes import GGUF_NAMES

    if name not in GGUF_NAMES:
        raise UnknownNameError("GGUF scheme", name, GGUF_NAMES)
    found = GGUF_NAMES[name]
    assert found.kind == "gguf"
    return replace(order, gguf=GgufTools.find(found.type, asked.gguf_from))


def _calibrated(name: str, source: Path, asked: Asked) -> Calibration | None:
    from fwopt.quantize import calibrated

    parsed = calibrated.parse(name)
    if parsed is None:
        return None
    rows = calibration_rows(source, asked)
    return calibrated.Calibration(*parsed, calibrated.find_python(), rows, tuple(p.name for p in asked.calibrate))


def calibration_rows(source: Path, asked: Asked) -> tuple[tuple[int, ...], ...]:
    """Windows of --calibrate."""
    from fwopt.quality.study import read_windows

    windows = read_windows(calibration_request(source, asked), _vocabulary(source), lambda *_: None)
    return tuple(tuple(int(t) for t in windows.tokens[windows.rows(i)]) for i in range(len(windows)))


def calibration_request(source: Path, asked: Asked) -> Request:
    if not asked.calibrate:
        raise InputError("this scheme rounds or chooses by text: add --calibrate FILE, other text than --text")
    same = {p.resolve() for p in asked.calibrate} & {p.resolve() for p in (*asked.text, *asked.workload)}
    if same:
        raise InputError(f"{min(same)}: is both --calibrate and --text; what is tuned on a text looks good on it")
    return request(
        str(source), asked.calibrate, (), "int8", asked.home, max_tokens=asked.calibrate_tokens, window=asked.window,
        seed=asked.seed, dtype="bf16",
    )  # fmt: skip


def to_measure(model: str, scheme: str | None, asked: Asked) -> Request | None:
    """The text to measure on, refused before any work where there is too little of it; None where none was given."""
    from fwopt.quality.study import require

    if not asked.text and not asked.workload:
        return None
    wanted = request(
        model, asked.text, asked.workload, scheme or "int8", asked.home, max_tokens=asked.max_tokens,
        window=asked.window, seed=asked.seed, dtype="bf16",
    )  # fmt: skip
    require(wanted, _vocabulary(wanted.folder))
    return wanted


def _vocabulary(source: Path) -> int:
    """Of the language model, where there are several."""
    file = source / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not a readable JSON file: {error}") from None
    config = Config(values if isinstance(values, dict) else {}, str(file))
    return (config.section("text_config") if config.has("text_config") else config).integer("vocab_size")


def choices_of(asked: Asked) -> tuple[Scheme, ...]:
    found = parse_schemes(asked.choices)
    for scheme in found:
        if scheme.weights is None or scheme.cache is not None:
            raise InputError(f"--choices {scheme.name}: must be a scheme of weights")
    return found
