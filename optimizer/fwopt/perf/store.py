"""The profile store: measured times of operators and of whole steps, one folder a device and engine version.

`profiles/<device>/<engine>-<version>/` holds one parquet table an operator (columns: the shape, `variant` = kernel,
dtypes, `p50_s`), or `steps.parquet` (`perf/steps.py`), and `environment.json`. A profile is identified by the hash of
those files' bytes. What `fwopt profile` measured on this machine comes before what is shipped.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError, UnmeasuredError
from fwopt.paths import data_folder, own_profiles
from fwopt.perf.environment import Environment
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.reading import require_version

Columns = dict[str, NDArray[Any]]
ENVIRONMENT = "environment.json"


@dataclass(slots=True)
class Profile:
    """One entry of the store; tables are read when first asked for and kept."""

    folder: Path
    environment: Environment
    digest: str
    """First 16 hex digits of the SHA-256 over the entry's files."""
    note: str | None = None
    """Set when another engine version stands in for the one asked for."""
    _tables: dict[str, Columns] = field(default_factory=dict)
    _built: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """For example `h200/vllm-0.24.0`."""
        return f"{self.environment.device}/{self.environment.engine}-{self.environment.engine_version}"

    def has(self, operator: str) -> bool:
        return operator in self.environment.tables

    def columns(self, operator: str) -> Columns:
        """Columns of one operator's table as arrays of equal length."""
        with self._lock:
            if operator not in self._tables:
                if not self.has(operator):
                    raise UnmeasuredError(f"profile {self.name} has no {operator} table")
                self._tables[operator] = _read(self.folder / f"{operator}.parquet")
            return self._tables[operator]

    def built(self, key: tuple[Any, ...], build: Any) -> Any:
        """`build()` once per key: lookup structures over the columns, shared by every model on this profile."""
        with self._lock:
            if key not in self._built:
                self._built[key] = build()
            return self._built[key]


def _read(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(use_threads=False).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    columns: Columns = {}
    for name in table.column_names:
        column = table.column(name).chunk(0)
        if pa.types.is_string(column.type):
            coded = column.dictionary_encode()
            columns[name] = np.asarray(coded.dictionary.to_pylist(), dtype=np.str_)[_numbers_of(coded.indices)]
        else:
            columns[name] = _numbers_of(column)
    return columns


def _numbers_of(array: Any) -> NDArray[Any]:
    """A null-free Arrow array's own buffer; its `to_numpy` would import pandas, at ten times the cost."""
    dtype = {"int32": np.int32, "int64": np.int64, "float": np.float32, "double": np.float64}[str(array.type)]
    return np.frombuffer(array.buffers()[1], dtype=dtype, count=len(array) + array.offset)[array.offset :]


def entries(folder: Path | None = None) -> Iterator[tuple[str, str, str, Path]]:
    """(device, engine, version, folder) of every profile below `folder` (default: this machine's, then the shipped
    ones; of two with one name, the first)."""
    seen: set[tuple[str, str]] = set()
    for root in (folder,) if folder else (own_profiles(), data_folder("profiles")):
        for environment in sorted(root.glob(f"*/*/{ENVIRONMENT}")):
            device, name = environment.parent.parent.name, environment.parent.name
            engine, _, version = name.partition("-")
            if version and (device, name) not in seen:
                seen.add((device, name))
                yield device, engine, version, environment.parent


def open_profile(folder: Path, note: str | None = None) -> Profile:
    """The profile in `folder`."""
    path = folder / ENVIRONMENT
    try:
        environment = Environment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: a profile needs a readable {ENVIRONMENT} ({error.strerror})") from None
    except ValueError as error:
        first = str(error).splitlines()
        raise InputError(
            f"{path}: not a profile environment: {' '.join(line.strip() for line in first[1:3])}"
        ) from None
    require_version(path, environment.model_dump(include={"schema_version"}))
    digest = hashlib.sha256()
    for name in sorted([ENVIRONMENT, *(f"{operator}.parquet" for operator in environment.tables)]):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{folder / name}: listed in {ENVIRONMENT} but not readable ({error.strerror})") from None
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return Profile(folder=folder, environment=environment, digest=digest.hexdigest()[:16], note=note)


def load_profile(device: DeviceSpec, engine: EngineSpec, folder: Path | None = None) -> Profile:
    """Best entry for a device and engine: that version, otherwise the nearest one with a note saying so."""
    known = list(entries(folder))
    found = [e for e in known if e[0] == device.name and e[1] == engine.name]
    if not found:
        have = ", ".join(f"{d}/{e}-{v}" for d, e, v, _ in known) or "none"
        where = f" in {folder}" if folder else ""
        advice = "add one with `fwopt profiles import`, or measure it there with `fwopt profile`"
        if device.kind == "cpu":
            advice = f"measure one with `fwopt profile --engine {engine.name}`, or name GPUs with --hardware"
        raise UnmeasuredError(f"no profile for {engine.name} on {device.name}{where}; there is {have}; {advice}")
    _, _, version, best = min(found, key=lambda e: (_distance(e[2], engine.version), e[2]))
    note = None
    if version != engine.version:
        note = f"times of {engine.name} {version} stand in for {engine.version}, which is not in the store"
    return open_profile(best, note)


def newest_version(device: DeviceSpec, engine: str, folder: Path | None = None) -> str | None:
    """Of an engine, the newest version with a profile on the device."""
    found = [version for d, e, version, _ in entries(folder) if d == device.name and e == engine]
    return max(found, key=lambda version: (_numbers(version), version), default=None)


def _numbers(version: str) -> tuple[int, int, int]:
    found = [int(n) for n in re.findall(r"\d+", version)[:3]]
    major, minor, patch = [*found, 0, 0, 0][:3]
    return major, minor, patch


def _distance(a: str, b: str) -> tuple[int, int, int]:
    x, y = _numbers(a), _numbers(b)
    return abs(x[0] - y[0]), abs(x[1] - y[1]), abs(x[2] - y[2])
