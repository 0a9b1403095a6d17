"""What `fwopt evals` was asked for, checked; and the runs themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fwopt.cli.counting import Tell
from fwopt.errors import InputError, UnknownNameError
from fwopt.evals import harness
from fwopt.evals.compare import compare, comparison_path
from fwopt.evals.extra import require
from fwopt.evals.files import Answers, read_answers, write_comparison
from fwopt.evals.harness import PREFIX, HarnessAsk
from fwopt.evals.items import EvalSet, read_eval_sets
from fwopt.evals.requests import check_sendable
from fwopt.evals.run import Ask, run
from fwopt.live.endpoint import Endpoint
from fwopt.live.identify import served
from fwopt.paths import own_evals
from fwopt.quality.schemes import SCHEMES
from fwopt.report.evals import render_answers, render_comparison
from fwopt.search.schemes import GGUF_NAMES, NAMES
from fwopt.spec.evals import EvalComparison, EvalSettings
from fwopt.targets import load_model


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything settled before the first request."""

    asks: tuple[Ask | HarnessAsk, ...]
    references: tuple[Ask | HarnessAsk | Answers | None, ...]
    """One for each set."""
    margin: float


@dataclass(frozen=True, slots=True)
class Found:
    answers: Answers
    comparison: EvalComparison | None
    path: Path
    """Of the comparison, or of the answers alone."""

    @property
    def fails(self) -> bool:
        return self.comparison is not None and self.comparison.overall.verdict != "not worse"


@dataclass(frozen=True, slots=True)
class Named:
    """What is to be asked: eval sets, read and drawn, and tasks of lm-evaluation-harness."""

    sets: tuple[EvalSet, ...]
    tasks: tuple[str, ...]
    folder: Path | None
    """Of tasks of the user's own."""

    def __len__(self) -> int:
        return len(self.sets) + len(self.tasks)


def named(paths: Sequence[Path], settings: EvalSettings, folder: Path | None) -> Named:
    """Bad lines and missing extras come to light before any server is asked anything."""
    require("evals", "scipy", "jsonschema")
    tasks = tuple(str(path).removeprefix(PREFIX) for path in paths if str(path).startswith(PREFIX))
    if tasks:
        require("lm-eval", "lm_eval")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--lm-eval-tasks {folder}: no such folder")
    sets = drawn_sets([path for path in paths if not str(path).startswith(PREFIX)], settings)
    return Named(sets, tasks, folder)


def prepare(
    what: Named,
    settings: EvalSettings,
    servers: tuple[Endpoint, Endpoint | None],
    *,
    known: Path | None,
    margin: str,
    scheme: str | None,
    of: str | None,
    out: Path | None,
) -> Asked:
    """`servers`: the one to grade, and the reference where it is one; `known`: the reference's answers."""
    share, digest = parse_margin(margin), _config_digest(scheme, of)
    references = _known_answers(known, what)
    where, other = servers
    version, home = served(where).version, out or own_evals()
    asks: tuple[Ask | HarnessAsk, ...] = (
        *(Ask(found, where, version, settings, home, scheme, digest) for found in what.sets),
        *(HarnessAsk(task, where, version, settings, home, what.folder, scheme, digest) for task in what.tasks),
    )
    if other is None:
        return Asked(asks, references, share)
    version = served(other).version
    plain = tuple(replace(ask, endpoint=other, version=version, scheme=None, config_digest=None) for ask in asks)
    return Asked(asks, plain, share)


def eval_settings(**given: Any) -> EvalSettings:
    try:
        return EvalSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        rule = first["msg"].replace("Input should be", "must be")
        raise InputError(f"--{str(first['loc'][0]).removesuffix('_s')}: {rule}, got {first['input']!r}") from None


def drawn_sets(paths: Sequence[Path], settings: EvalSettings) -> tuple[EvalSet, ...]:
    """Read, drawn and sendable, all of them before the first is asked."""
    sets = tuple(found.drawn(settings.limit, settings.seed) for found in read_eval_sets(paths))
    for found in sets:
        check_sendable(found, settings)
    return sets


def parse_margin(text: str) -> float:
    """`0.5pp` -> 0.005."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*pp\s*", text)
    try:
        share = float(found[1]) / 100 if found else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise InputError(f"--margin '{text}': write percentage points, for example 0.5pp")
    return share


def _config_digest(scheme: str | None, of: str | None) -> str | None:
    if (scheme is None) != (of is None):
        raise InputError("--scheme and --of go together: how the server's model is quantized, and which model it is")
    if scheme is None or of is None:
        return None
    for part in scheme.split("+"):
        if not re.fullmatch(r"w4a16-g\d+", part):
            known = {*NAMES, *GGUF_NAMES, *SCHEMES}
            if part not in known:
                raise UnknownNameError("scheme", part, known)
    return load_model(of).config_digest


def _known_answers(path: Path | None, what: Named) -> tuple[Answers | None, ...]:
    """The reference's answers, checked before anything is asked."""
    if path is None:
        return (None,) * len(what)
    if len(what) > 1:
        raise InputError("--against FILE holds the answers to one set; name one set, or a URL to ask for all of them")
    found = read_answers(path)
    if what.sets and found.header.digest != what.sets[0].digest:
        raise InputError(
            f"{path}: holds answers to other items ('{found.header.set}', {found.header.digest}) than those of "
            f"'{what.sets[0].name}' ({what.sets[0].digest}); name the same file, --limit and --seed"
        )
    return (found,)


def compared(asked: Asked, tell: Tell, *, resume: bool) -> list[Found]:
    """References first: with them missing nothing can be said."""
    found = []
    for ask, reference in zip(asked.asks, asked.references, strict=True):
        before = reference if reference is None or isinstance(reference, Answers) else _run(reference, tell, resume)
        this = _run(ask, tell, resume)
        if before is None:
            found.append(Found(this, None, this.path))
            continue
        comparison, path = compare(before, this, margin=asked.margin), comparison_path(this)
        write_comparison(comparison, path)
        found.append(Found(this, comparison, path))
    return found


def _run(ask: Ask | HarnessAsk, tell: Tell, resume: bool) -> Answers:
    if isinstance(ask, HarnessAsk):
        return harness.run(ask)
    return run(ask, tell, resume=resume)


def render(found: Sequence[Found]) -> str:
    return "\n\n".join(
        render_answers(one.answers.header, one.answers.graded, str(one.path))
        if one.comparison is None
        else render_comparison(one.comparison, str(one.path))
        for one in found
    )


def to_json(found: Sequence[Found]) -> str:
    """A list: a comparison for each set, or its answers' header and score where there is no reference."""
    return json.dumps([_plain(one) for one in found], indent=2)


def _plain(one: Found) -> dict[str, Any]:
    if one.comparison is not None:
        return one.comparison.model_dump(mode="json")
    answers = one.answers
    return {
        "header": answers.header.model_dump(mode="json"),
        "score": answers.score,
        "errors": answers.errors,
        "file": str(answers.path),
    }
