"""A table of measured serving results: read, checked, one dict a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fwopt.errors import InputError

Row = Mapping[str, Any]

REQUIRED = ("model", "gpu", "n_gpus", "engine", "tp", "isl", "osl", "load_type")
MEASURED = (
    "ttft_mean_ms", "ttft_p50_ms", "tpot_mean_ms", "tpot_p50_ms", "output_tok_s", "output_tok_s_derived",
)  # fmt: skip


def read_table(path: Path) -> pd.DataFrame:
    """Every column as the file has it; numbers parsed, text kept. InputError names what is missing."""
    try:
        frame = pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, EOFError, UnicodeError) as error:
        raise InputError(f"{path}: not a readable CSV: {error}") from None
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: columns missing: {', '.join(missing)}; see docs/score.md for the schema")
    if frame.empty:
        raise InputError(f"{path}: no rows")
    for name in MEASURED:
        if name not in frame.columns:
            frame[name] = float("nan")
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def records(frame: pd.DataFrame) -> list[Row]:
    """The rows, as plain mappings."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def number(row: Row, name: str) -> float | None:
    """A numeric cell, None where it is empty, absent or no number."""
    try:
        value = float(row.get(name))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def text(row: Row, name: str) -> str:
    """A cell as text, empty where it is empty or absent."""
    value = row.get(name)
    return "" if value is None or value != value else str(value)
