"""`fwopt profiles import`: operator tables in AIConfigurator's layout -> one compact profile."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fwopt.atomic import folder_written_whole
from fwopt.errors import InputError, UnknownNameError
from fwopt.perf import sources
from fwopt.perf.environment import Dropped, Environment, TableEnvironment
from fwopt.perf.store import ENVIRONMENT

if TYPE_CHECKING:
    import pandas as pd

IMPORTER_VERSION = 1
SOURCE = "NVIDIA AIConfigurator 0.12.0 (PyPI aiconfigurator-core; github.com/ai-dynamo/aiconfigurator)"
LICENCE = "Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES"
MANTISSA_BITS = 12
"""Times are rounded to 12 significant bits (1 part in 8192), far below their spread, so that they compress."""


class _Source:
    """The folder of one device below the given path, and the version of each backend in it."""

    def __init__(self, src: Path, device: str, engine: str, version: str | None) -> None:
        root = src / "data" if (src / "data").is_dir() else src
        if not root.is_dir():
            raise InputError(f"{src}: no such folder; give the folder that holds data/<system>/")
        systems = {sources.SYSTEMS.get(p.name, p.name): p for p in sorted(root.iterdir()) if p.is_dir()}
        if device not in systems:
            raise UnknownNameError("device", device, systems, hint=f"the names are those of the folders in {root}")
        self.root, self.folder, self.engine = root, systems[device], engine
        found = self.versions(engine)
        if not found:
            engines = {p.parent.name for p in self.folder.glob("*/*/*") if p.is_dir()}
            raise UnknownNameError("engine", engine, engines, hint=f"no tables of it below {self.folder}")
        if version and version not in found:
            raise UnknownNameError(f"{engine} version", version, found)
        self.version = version or found[-1]

    def versions(self, backend: str) -> list[str]:
        """Versions of a backend, oldest first."""
        names = {p.name for p in self.folder.glob(f"*/{backend}/*") if p.is_dir()}
        return sorted(names, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])

    def path(self, template: str, engine: str | None = None) -> Path:
        nccl = self.versions("nccl")
        engine = engine or self.engine
        version = self.version if engine == self.engine else (self.versions(engine) or ["none"])[-1]
        return self.folder / template.format(engine=engine, version=version, nccl=nccl[-1] if nccl else "none")


def import_profile(src: Path, device: str, engine: str, version: str | None, out: Path) -> Path:
    """Import every table of one device and engine below `src` into `out/<device>/<engine>-<version>/`.

    Returns that folder. An existing profile there is replaced as a whole, or kept if anything fails.
    """
    source = _Source(src, device, engine, version)
    target = out / device / f"{engine}-{source.version}"
    with folder_written_whole(target) as work:
        tables: dict[str, TableEnvironment] = {}
        device_names: set[str] = set()
        for operator, table in sources.TABLES.items():
            path = source.path(table.path)
            if path.is_file():
                tables[operator] = _import_table(source, operator, table, work, device_names)
        if not tables:
            raise InputError(f"{source.folder}: no table of {engine} {source.version} in a known place")
        families = {table.path.partition("/")[0] for table in sources.TABLES.values()}
        skipped = sorted(p.name for p in source.folder.iterdir() if p.is_dir() and p.name not in families)
        environment = Environment(
            device=device,
            device_full_name=", ".join(sorted(device_names)) or device,
            engine=engine,
            engine_version=source.version,
            source=SOURCE,
            licence=LICENCE,
            importer_version=IMPORTER_VERSION,
            tables=tables,
            notes=(f"times rounded to {MANTISSA_BITS} significant bits", *(f"not imported: {s}" for s in skipped)),
        )
        (work / ENVIRONMENT).write_text(environment.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return target


@dataclass(slots=True)
class _Rows:
    """One source table on its way into the store, and what it lost."""

    operator: str
    table: sources.SourceTable
    frame: pd.DataFrame
    used: list[Path]
    notes: list[str]
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, keep: pd.Series[bool], reason: str) -> None:
        if count := int((~keep).sum()):
            self.dropped.append(Dropped(rows=count, reason=reason))
            self.frame = self.frame[keep]


def _import_table(
    source: _Source, operator: str, table: sources.SourceTable, out: Path, device_names: set[str]
) -> TableEnvironment:
    path = source.path(table.path)
    rows = _Rows(operator, table, _read(path, table), [path], list(table.notes))
    device_names.update(str(d) for d in rows.frame["device"].unique())
    _substitute_block_fp8(rows, source)
    _drop_unusable(rows)
    kernels = tuple(sorted(str(k) for k in rows.frame["kernel_source"].unique()))
    _one_row_a_key(rows)
    if table.grows_with:
        reason = f"over {sources.ARTEFACT} times slower than the same with larger {table.grows_with}"
        rows.drop(~_artefacts(rows.frame, table.grows_with, table.grows_from), reason)
    _write(_canonical(rows.frame), out / f"{operator}.parquet")
    return TableEnvironment(
        rows=len(rows.frame),
        sources=tuple(str(p.relative_to(source.root)) for p in rows.used),
        kernels=kernels,
        dropped=tuple(rows.dropped),
        notes=tuple(rows.notes),
    )


def _substitute_block_fp8(rows: _Rows, source: _Source) -> None:
    giver, receiver = sources.BLOCK_FP8_FROM
    if rows.operator != "gemm" or source.engine != receiver or not (rows.frame["gemm_dtype"] == "fp8_block").any():
        return
    rows.drop(rows.frame["gemm_dtype"] != "fp8_block", sources.BLOCK_FP8_REASON)
    other = source.path(rows.table.path, engine=giver)
    if other.is_file():
        block = _read(other, rows.table)
        rows.frame = _concat([rows.frame, block[block["gemm_dtype"] == "fp8_block"]])
        rows.used.append(other)
        rows.notes.append(f"fp8_block rows are {giver} {other.parent.name}'s DeepGEMM kernel")


def _drop_unusable(rows: _Rows) -> None:
    positive = np.isfinite(rows.frame["latency"]) & (rows.frame["latency"] > 0)
    rows.drop(positive, "the time is not a positive number")
    for column, values in rows.table.keep.items():
        rows.drop(rows.frame[column].isin(values), rows.table.drop_reason)
    for (operator, kernel), reason in sources.KERNELS_UNUSED.items():
        if operator == rows.operator:
            rows.drop(rows.frame["kernel_source"] != kernel, reason)


def _one_row_a_key(rows: _Rows) -> None:
    """Median over repeated keys, in seconds, under the store's names."""
    if rows.table.kernels_add_up:
        _add_kernels(rows)
    before, table = len(rows.frame), rows.table
    grouped = rows.frame.groupby(list(table.columns), as_index=False, sort=True, observed=True)
    frame = grouped.agg(variant=("kernel_source", "first"), latency=("latency", "median"))
    frame["latency"] *= table.seconds_per_unit
    rows.frame = frame.rename(columns={**table.columns, "latency": "p50_s"})
    if repeated := before - len(frame):
        rows.dropped.append(Dropped(rows=repeated, reason="the same key again: the median is kept"))


def _add_kernels(rows: _Rows) -> None:
    """One row a key: the sum of its kernels' medians; keys that lack a kernel are left out."""
    keys = list(rows.table.columns)
    parts = rows.frame.groupby([*keys, "kernel_source"], as_index=False, sort=True, observed=True).agg(
        latency=("latency", "median")
    )
    whole = parts.groupby(keys, as_index=False, sort=True, observed=True).agg(
        kernel_source=("kernel_source", " + ".join), latency=("latency", "sum"), kernels=("latency", "size")
    )
    if repeated := len(rows.frame) - len(parts):
        rows.dropped.append(Dropped(rows=repeated, reason="the same key and kernel again: the median is kept"))
    rows.frame = whole
    rows.drop(whole["kernels"] == whole["kernels"].max(), "one of the operator's kernels was not timed")


def _read(path: Path, table: sources.SourceTable) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    missing = [c for c in ("device", "kernel_source", *table.columns, "latency") if c not in frame.columns]
    if missing:
        raise InputError(f"{path}: column {missing[0]} is missing; there are {', '.join(map(str, frame.columns))}")
    return frame


def _concat(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(list(frames), ignore_index=True)


def _artefacts(frame: pd.DataFrame, size: str, start: int) -> pd.Series[bool]:
    """Rows from `start` on that are slower than `ARTEFACT` times the fastest row with a larger `size`."""
    group = [c for c in frame.columns if c not in (size, "variant", "p50_s")]
    ordered = frame.sort_values(size, ascending=False, kind="stable")
    least = ordered.groupby(group, observed=True)["p50_s"].cummin()
    return (frame["p50_s"] > sources.ARTEFACT * least.reindex(frame.index)) & (frame[size] >= start)


def _canonical(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    for column in ("dtype", "kv_dtype"):
        if column in frame:
            frame[column] = frame[column].map(lambda v: sources.DTYPES.get(v, v))
    for column in sources.PLUS_ONE:
        if column in frame:
            frame[column] = frame[column] + 1
    if "mode" in frame:
        frame["mode"] = frame["mode"].str.rpartition("_")[2]
    seconds = frame["p50_s"].to_numpy(np.float64)
    mantissa, exponent = np.frexp(seconds)
    frame["p50_s"] = np.ldexp(np.round(mantissa * 2**MANTISSA_BITS), exponent - MANTISSA_BITS).astype(np.float32)
    return frame


def _write(frame: pd.DataFrame, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {}
    for name in frame.columns:
        if name == "p50_s":
            fields[name] = pa.array(frame[name].to_numpy(), pa.float32())
        elif frame[name].dtype.kind in "iu":
            fields[name] = pa.array(frame[name].to_numpy(), pa.int32())
        else:
            fields[name] = pa.array(frame[name].astype(str).tolist(), pa.string()).dictionary_encode()
    pq.write_table(
        pa.table(fields),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=[n for n in fields if n != "p50_s"],
        column_encoding={"p50_s": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        store_schema=False,
    )
