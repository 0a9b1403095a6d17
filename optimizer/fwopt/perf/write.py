"""Measured tables into the store: rows of the same subject are replaced, others stay, all or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fwopt.atomic import folder_written_whole
from fwopt.errors import InputError
from fwopt.perf.environment import Environment, Measured, TableEnvironment
from fwopt.perf.store import ENVIRONMENT, Columns, open_profile

Row = Mapping[str, str | int | float]
IMPORTER_VERSION = 1
LICENCE = "measured on this machine with fwopt; yours"


@dataclass(frozen=True, slots=True)
class NewTable:
    """Rows of one operator's table, or of `steps`."""

    rows: Sequence[Row]
    replaces: tuple[str, ...]
    """Columns that name the subject: rows there with the same values of them give way."""
    kernels: tuple[str, ...]
    notes: tuple[str, ...] = ()


def add_measurements(
    root: Path, device: str, device_full_name: str, engine: str, version: str, tables: Mapping[str, NewTable],
    measured: Measured,
) -> Path:  # fmt: skip
    """Put `tables` into `root/<device>/<engine>-<version>/`, made if missing; returns that folder."""
    target = root / device / f"{engine}-{version}"
    with folder_written_whole(target) as work:
        old = _old(target)
        described = dict(old.tables) if old is not None else {}
        for name in described:
            shutil.copyfile(target / f"{name}.parquet", work / f"{name}.parquet")
        for name, table in tables.items():
            columns = _columns(table.rows)
            if name in described:
                columns = _merged(open_profile(target).columns(name), columns, table.replaces)
            _write(columns, work / f"{name}.parquet")
            count = len(next(iter(columns.values())))
            described[name] = TableEnvironment(rows=count, sources=(), kernels=table.kernels, notes=table.notes)
        before = tuple(m for m in old.measured if m.what != measured.what) if old is not None else ()
        environment = Environment(
            device=device,
            device_full_name=device_full_name,
            engine=engine,
            engine_version=version,
            source="fwopt profile, on the device itself",
            licence=LICENCE,
            importer_version=IMPORTER_VERSION,
            tables=described,
            notes=old.notes if old is not None else (),
            measured=(*before, measured),
        )
        (work / ENVIRONMENT).write_text(environment.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return target


def _old(target: Path) -> Environment | None:
    if not (target / ENVIRONMENT).exists():
        return None
    environment = open_profile(target).environment
    if not environment.measured:
        raise InputError(
            f"{target}: holds imported tables of {environment.source}, which measurements do not mix with; "
            "choose another --out"
        )
    return environment


def _columns(rows: Sequence[Row]) -> Columns:
    if not rows:
        raise InputError("nothing was measured, so there is nothing to keep")
    columns: dict[str, Any] = {}
    for name, first in rows[0].items():
        kind: type = np.str_ if isinstance(first, str) else np.int64 if isinstance(first, int) else np.float64
        columns[name] = np.asarray([row[name] for row in rows], dtype=kind)
    return columns


def _merged(old: Columns, new: Columns, replaces: tuple[str, ...]) -> Columns:
    """Old rows whose subject is not measured anew, then the new ones."""
    if set(old) != set(new):
        raise InputError(
            f"a table there has columns {', '.join(sorted(old))}, not {', '.join(sorted(new))}; choose --out"
        )
    anew = set(zip(*(new[name].tolist() for name in replaces), strict=True))
    keep = [key not in anew for key in zip(*(old[name].tolist() for name in replaces), strict=True)]
    at = np.flatnonzero(keep)
    return {name: np.concatenate([old[name][at], new[name]]) for name in new}


def _write(columns: Columns, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {}
    for name, values in columns.items():
        if values.dtype.kind == "U":
            fields[name] = pa.array(values.tolist(), pa.string())
        elif values.dtype.kind in "iu":
            fields[name] = pa.array(values, pa.int64())
        else:
            fields[name] = pa.array(values, pa.float64())
    pq.write_table(pa.table(fields), path, compression="zstd", write_statistics=False, store_schema=False)
