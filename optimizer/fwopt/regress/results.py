"""Result files, read and written; a file that is no result is an error, never a pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import ValidationError

from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.regress.suite import first_problem
from fwopt.spec.base import Frozen
from fwopt.spec.bench_result import Result
from fwopt.spec.comparison import Comparison
from fwopt.spec.reading import require_version

DIGITS = 6
"""Significant digits of a sample in a file: a clock tells no more, and files stay small enough for git."""
F = TypeVar("F", bound=Frozen)


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def write_result(result: Result, path: Path) -> None:
    """JSON, a line a run, so that git shows what changed."""
    content, lines = result.model_dump(mode="json"), []
    for bench in content["benches"]:
        for name in ("runs", "aa_runs"):
            lines += [orjson.dumps(run).decode() for run in bench[name]]
            bench[name] = [f"@{len(lines) - len(bench[name]) + i}@" for i in range(len(bench[name]))]
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_text(path, re.sub(r'"@(\d+)@"', lambda found: lines[int(found[1])], text) + "\n")


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written: {error.strerror}; choose another folder") from None
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def read_result(path: Path) -> Result:
    return _read(path, Result, "bench-result", "a result that `fwopt bench run` wrote")


def read_comparison(path: Path) -> Comparison:
    return _read(path, Comparison, "bench-comparison", "a comparison that `fwopt bench compare` wrote")


def _read(path: Path, kind: type[F], name: str, what: str) -> F:
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; name {what}") from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON ({error}): it is cut or corrupt; measure it again") from None
    if not isinstance(content, dict) or content.get("kind") != name:
        raise InputError(f"{path}: is not {what}")
    require_version(path, content)
    try:
        return kind.model_validate(content, strict=False)
    except ValidationError as error:
        raise InputError(f"{path}: is corrupt: {first_problem(error)}; measure it again") from None
