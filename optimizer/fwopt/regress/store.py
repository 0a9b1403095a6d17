"""Baselines in a folder that belongs into git: `STORE/<suite>/<key>/<time>-<commit>.json`, one of them promoted."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import orjson

from fwopt.errors import InputError, UnknownNameError
from fwopt.regress.changepoints import change_points
from fwopt.regress.estimate import point
from fwopt.regress.judge import samples
from fwopt.regress.kinship import ForeignError, key_digest, moment, require_kin
from fwopt.regress.results import read_result, write_result, write_text
from fwopt.spec.bench import Rules
from fwopt.spec.bench_result import Result

PROMOTED = "promoted.json"
LONGEST_HISTORY = 30
"""Sessions before the promoted one that say how far sessions lie apart."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One result of a store."""

    path: Path
    result: Result
    promoted: bool


def save(result: Result, store: Path) -> Path:
    """Add a session to its history."""
    if not any(run.samples for bench in result.benches for run in bench.runs):
        raise InputError("the result holds no samples: it is no baseline; see its problems with `fwopt bench compare`")
    stamp = moment(result).strftime("%Y%m%dT%H%M%S")
    name = f"{stamp}-{(result.commit or result.session)[:12]}.json"
    path = store / result.suite / key_digest(result) / name
    if path.exists():
        raise InputError(f"{path} is there already; nothing to save")
    write_result(result, path)
    return path


def promote(path: Path, store: Path) -> None:
    """Make a saved result the one that others are compared with."""
    inside = path.resolve().parent
    if inside.parent.parent != store.resolve():
        raise InputError(f"{path}: is not in {store}; save it first: fwopt bench baseline save {path} --store {store}")
    read_result(path)
    write_text(inside / PROMOTED, orjson.dumps({"kind": "bench-promoted", "file": path.name}).decode() + "\n")


def listed(store: Path, suite: str | None = None) -> list[Stored]:
    """Every result, oldest first; none, and a corrupt file, are errors."""
    folders = sorted({path.parent for path in store.glob("*/*/*.json") if path.name != PROMOTED})
    if not folders:
        raise InputError(f"{store}: holds no baselines; save one: fwopt bench baseline save RESULT --store {store}")
    if suite is not None:
        suites = {folder.parent.name for folder in folders}
        if suite not in suites:
            hint = f"{store} holds none of it; save one: fwopt bench baseline save RESULT --store {store}"
            raise UnknownNameError("suite", suite, suites, hint)
        folders = [folder for folder in folders if folder.parent.name == suite]
    found = []
    for folder in folders:
        chosen = _promoted(folder)
        found += [
            Stored(p, read_result(p), p.name == chosen) for p in sorted(folder.glob("*.json")) if p.name != PROMOTED
        ]
    return sorted(found, key=lambda s: moment(s.result))


def _promoted(folder: Path) -> str | None:
    path = folder / PROMOTED
    if not path.exists():
        return None
    try:
        name = orjson.loads(path.read_bytes())["file"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is corrupt; promote a baseline again") from None
    if not isinstance(name, str) or not (folder / name).is_file():
        raise InputError(f"{path}: names '{name}', which is not there; promote another baseline")
    return name


def baseline_for(head: Result, store: Path, rules: Rules, across: Collection[str]) -> tuple[Result, list[Result]]:
    """The newest promoted result that head may be compared with, and the sessions of the same level before it."""
    all_ = listed(store, head.suite)
    reasons = []
    for candidate in sorted((s for s in all_ if s.promoted), key=lambda s: moment(s.result), reverse=True):
        try:
            require_kin(candidate.result, head, rules, across)
        except ForeignError as error:
            reasons.append(str(error))
            continue
        return candidate.result, _history(candidate, all_, head)
    if reasons:
        raise ForeignError(f"{store}: no baseline fits: {reasons[0]}")
    raise InputError(f"{store}: no baseline of suite '{head.suite}' is promoted; fwopt bench baseline promote FILE")


def _history(base: Stored, all_: list[Stored], head: Result) -> list[Result]:
    """Sessions of the same suite beside the promoted one, up to it, since any metric last changed."""
    beside = [
        s.result
        for s in all_
        if s.path.parent == base.path.parent
        and s.result.suite_digest == base.result.suite_digest
        and moment(s.result) <= moment(base.result)
        and s.result.session != head.session
    ][-LONGEST_HISTORY:]
    since = 0
    for bench in base.result.benches:
        for metric in bench.metrics:
            values = series_of(beside, bench.name, metric.name)
            if all(value is not None for value in values):
                known = [value for value in values if value is not None]
                least = math.log1p(head.rules.floor)
                since = max([since, *(c.last for c in change_points(known, least=least))])
    return beside[since:]


def series_of(results: list[Result], bench: str, metric: str) -> list[float | None]:
    """One metric's value in each result; None where it has no samples."""
    values: list[float | None] = []
    for result in results:
        value = None
        for found in (b for b in result.benches if b.name == bench):
            for m in (m for m in found.metrics if m.name == metric):
                good = tuple(run for run in found.runs if run.problem is None)
                taken = samples(good, m.name if found.exact else m.series)
                value = point(taken, m.quantile) if len(taken) else None
        values.append(value)
    return values
