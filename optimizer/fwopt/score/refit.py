"""Calibration from a measured table: fitted, cross-validated, with intervals from what was held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.perf.calibration import Calibration, Interval, Metric
from fwopt.score.case import ENGINES, Case, read_case
from fwopt.score.fit import Fit, Observation
from fwopt.score.rules import teaches
from fwopt.score.run import METRICS, observe, score
from fwopt.score.table import records
from fwopt.spec.base import content_hash

FOLDS = 5
LOW, HIGH = 0.1, 0.9
"""An 80 % interval."""
MIN_ROWS = 20
"""Fewer held-out errors than this make no group of their own."""


def _observations(table: pd.DataFrame, engine: str) -> list[Observation]:
    """Rows of one engine that may teach: resolvable and under no exclusion."""
    found = []
    for row in records(table):
        case = read_case(row)
        if isinstance(case, Case) and case.engine.name == engine and teaches(row):
            found.append(observe(row, case))
    return found


def fold_of(key: str, folds: int) -> int:
    """Rows that repeat a configuration fall into the same part."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % folds


def intervals(errors: Sequence[tuple[bool, dict[Metric, float]]]) -> tuple[Interval, ...]:
    """From (is MoE, log(predicted / measured)) of held-out rows: where measured lies relative to predicted."""
    found = []
    for metric in METRICS:
        for group, members in (("dense", {False}), ("moe", {True}), ("all", {False, True})):
            ratio = np.array([-e[metric] for moe, e in errors if moe in members and metric in e])
            if len(ratio) < MIN_ROWS:
                continue
            # the outer order statistics, so that few rows give wide intervals and not lucky narrow ones
            low = float(np.quantile(ratio, LOW, method="lower"))
            high = float(np.quantile(ratio, HIGH, method="higher"))
            found.append(
                Interval(metric=metric, group=group, low=round(math.exp(low), 4), high=round(math.exp(high), 4),
                         rows=len(ratio))
            )  # fmt: skip
    return tuple(found)


def _held_out_errors(fit: Fit, rows: Sequence[Observation], folds: int) -> list[tuple[bool, dict[Metric, float]]]:
    """Each row's errors under a fit that has not seen its configuration."""
    errors: list[tuple[bool, dict[Metric, float]]] = []
    for part in range(folds):
        train = [row for row in rows if fold_of(row.case.key, folds) != part]
        test = [row for row in rows if fold_of(row.case.key, folds) == part]
        if train and test:
            found = fit.errors(fit.run(train), test)
            errors += [(row.case.model.is_moe, error) for row, error in zip(test, found, strict=True)]
    return errors


def fit_engine(rows: Sequence[Observation], engine: str, folds: int, fitted_on: str) -> Calibration:
    """Fit on all of `rows`; intervals from a cross-validation within them."""
    fit = Fit(engine, rows)
    held_out = _held_out_errors(fit, rows, folds)
    calibration = fit.calibration(fit.run(rows), fitted_on=fitted_on)
    content = calibration.model_dump(mode="json", exclude={"version"})
    version = f"{datetime.now(UTC):%Y-%m-%d}-{content_hash(content)[:6]}"
    return calibration.model_copy(update={"version": version, "intervals": intervals(held_out)})


def refit_all(table: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Fit every engine that has rows and write `<folder>/<engine>.yaml`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from None
    paths = []
    for engine in ENGINES:
        rows = _observations(table, engine)
        if not rows:
            continue
        calibration = fit_engine(rows, engine, FOLDS, f"{name}, {len(rows)} rows of {engine}")
        path = folder / f"{engine}.yaml"
        with written_whole(path) as beside:
            beside.write_text(_text(calibration, name), encoding="utf-8")
        paths.append(path)
    return paths


def _text(calibration: Calibration, name: str) -> str:
    head = f"# Fitted by `fwopt score {name} --refit FOLDER`. Factors multiply operator times, overheads are seconds,\n"
    head += (
        "# intervals say where the measured value lay, as multiples of the predicted one, in 80 % of held-out rows.\n"
    )
    content: dict[str, Any] = calibration.model_dump(mode="json")
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def leave_models_out(table: pd.DataFrame) -> pd.DataFrame:
    """Every row scored by a calibration that has seen nothing of its architecture. No intervals: they would need a
    cross-validation within each fit."""
    cases = [read_case(row) for row in records(table)]
    of = np.array([case.model.config_digest if isinstance(case, Case) else "" for case in cases])
    parts = []
    for model in sorted(set(of)):
        train, test = table[of != model], table[of == model]
        calibrations: dict[str, Calibration] = {}
        for engine in sorted({case.engine.name for case, its in zip(cases, of, strict=True)
                              if isinstance(case, Case) and its == model}):  # fmt: skip
            rows = _observations(train, engine)
            fit = Fit(engine, rows)
            calibrations[engine] = fit.calibration(fit.run(rows)) if rows else Calibration(engine=engine)
        parts.append(score(test, calibrations))
    return pd.concat(parts).loc[table.index]


def cross_validate(table: pd.DataFrame, folds: int) -> pd.DataFrame:
    """Every row scored by a calibration that has seen nothing of its configuration.

    Its interval comes from the errors of the other parts, each under the calibration that had not seen it (CV+, Barber
    et al. 2021): no row's own error is behind the interval that it is judged by.
    """
    keys = [case.key if isinstance(case := read_case(row), Case) else "" for row in records(table)]
    part_of = np.array([fold_of(key, folds) for key in keys])
    fitted: list[dict[str, Calibration]] = []
    errors: list[dict[str, list[tuple[bool, dict[Metric, float]]]]] = []
    for part in range(folds):
        train, test = table[part_of != part], table[part_of == part]
        taught = {engine: rows for engine in ENGINES if (rows := _observations(train, engine))}
        fitted.append({})
        errors.append({})
        for engine, rows in taught.items():
            fit, held_out = Fit(engine, rows), _observations(test, engine)
            theta = fit.run(rows)
            fitted[part][engine] = fit.calibration(theta)
            found = fit.errors(theta, held_out)
            errors[part][engine] = [(r.case.model.is_moe, e) for r, e in zip(held_out, found, strict=True)]
    parts = []
    for part in range(folds):
        others = [errors[other] for other in range(folds) if other != part]
        calibrations = {
            engine: c.model_copy(update={"intervals": intervals([e for o in others for e in o.get(engine, [])])})
            for engine, c in fitted[part].items()
        }
        parts.append(score(table[part_of == part], calibrations))
    return pd.concat(parts).loc[table.index]
