"""A table of measured serving results: read, checked, one dict a row."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fwopt.errors import InputError

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


def number(row: pd.Series[object], name: str) -> float | None:
    """A numeric cell, None where it is empty or absent."""
    value = pd.to_numeric(row.get(name), errors="coerce")
    return None if pd.isna(value) else float(value)


def text(row: pd.Series[object], name: str) -> str:
    value = row.get(name)
    return "" if value is None or pd.isna(value) else str(value)
