"""Times of tuned kernels, and what of them holds: `profiles/<device>/kernels-<Triton version>/`.

The reference engine runs `fwopt_kernels` where it has an operator; there these rows take the place of the profile's
own. Rows hold for the device and Triton they were timed with and for the kernel sources that they carry the hash of.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import FwoptError
from fwopt.perf.environment import TableEnvironment
from fwopt.perf.prompt_rows import prompt_rows
from fwopt.perf.store import Columns, Profile, entries, open_profile
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.kernels import KernelChoice, KernelSet

ENGINE = "kernels"
NOT_SHAPE = ("format", "variant", "default", "chosen", "calls", "p20_s", "p50_s", "p80_s", "samples", "sources")
"""Columns of a kernel's table that are no dimension of its shape."""
Which = Literal["default", "chosen"]
ELEMENTWISE = {"rms_norm": "rows", "silu_mul": "rows", "rope_cache": "tokens"}
"""Bandwidth-bound kernel -> its dimension that grows with a step."""
_PRODUCTS = {"w4a16": "w4a16", "int8_gemm": "int8"}
"""Matrix product -> dtype of the layers that the reference engine computes with it."""
_EXPERTS = {"bf16": "bf16", "fp8-block": "fp8", "w4a16": "w4a16", "mxfp4": "mxfp4"}
"""Format of the experts' kernel -> scheme that the reference engine runs in it: fp8 experts are blocks of equal scales
(`engine/expert_weights.py`)."""
_INT8 = "int8-row"
"""The format of `int8_gemm` that the reference engine runs."""
EXPERTS_GROUP = 128
"""4-bit experts are timed with a scale for so many values of K; other groups are other kernels."""
_KEYS = {
    "gemm": ("dtype", "n", "k", "m"),
    "decode_attention": ("kv_dtype", "heads", "kv_heads", "head_dim", "window", "batch", "context"),
    "prefill_attention": ("dtype", "kv_dtype", "heads", "kv_heads", "head_dim", "window", "batch", "length"),
    "moe": ("dtype", "hidden", "inter", "topk", "experts", "tp", "ep", "routing", "tokens"),
    "elementwise": ("kernel", "columns", "heads", "kv_heads", "head_dim", "rows"),
}
"""Operator table -> its key; the last one or two are what a step changes."""
_AXES = {"gemm": 1, "decode_attention": 2, "prefill_attention": 2, "moe": 1, "elementwise": 1}


class StaleError(FwoptError):
    """Tuned times that do not hold for what is here."""


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """One device's tuned kernels, without the rows that no longer hold."""

    profile: Profile
    kernels: KernelSet
    tables: dict[str, Columns]
    """By operator."""

    def over(self, profile: Profile, which: Which, *, group: int | None, tp: int, routing: str) -> Profile:
        """`profile` with the kernels' rows in place of its own of the same shapes. `group`: values of K that share a
        scale in 4-bit weights; `tp`: ranks that an expert's width is divided by."""
        tables = dict(profile.environment.tables)
        columns: dict[str, Columns] = {}
        for table, new in self._tables(which, group, tp, routing).items():
            old = profile.columns(table) if profile.has(table) else None
            columns[table] = _merged(table, old, new)
            tables[table] = TableEnvironment(rows=len(columns[table]["p50_s"]), sources=(), kernels=())
        own = {name: profile.columns(name) for name in profile.environment.tables if name not in columns}
        environment = profile.environment.model_copy(update={"tables": tables})
        return replace(profile, environment=environment, _tables={**own, **columns}, _built={})

    def _tables(self, which: Which, group: int | None, tp: int, routing: str) -> dict[str, Columns]:
        found: dict[str, list[Columns]] = {}
        for operator, rows in self.tables.items():
            at = rows[which] == 1
            if operator == "w4a16":
                at &= rows["format"] == f"g{group}"
            elif operator == "int8_gemm":
                at &= rows["format"] == _INT8
            elif operator == "fused_moe":
                at &= np.isin(rows["format"], [f for f in _EXPERTS if f != "w4a16" or group == EXPERTS_GROUP])
            elif operator in ELEMENTWISE and operator != "rope_cache":
                at &= rows["format"] == "bf16"
            made = _as_operator({name: values[at] for name, values in rows.items()}, operator, tp, routing)
            if made is not None and at.any():
                found.setdefault(made[0], []).append(made[1])
        return {
            table: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for table, parts in found.items()
        }


def _as_operator(rows: Columns, operator: str, tp: int, routing: str) -> tuple[str, Columns] | None:
    """(table, columns): a kernel's rows in the words of the operator tables; None: the reference engine does not run
    that kernel."""
    count = len(rows["p50_s"])

    def same(value: str | int) -> NDArray[np.str_] | NDArray[np.int64]:
        return np.full(count, value)

    seconds = {"p50_s": rows["p50_s"]}
    if operator in _PRODUCTS:
        return "gemm", {"dtype": same(_PRODUCTS[operator]), "n": rows["n"], "k": rows["k"], "m": rows["m"], **seconds}
    if operator == "decode_attention":
        names = ("heads", "kv_heads", "head_dim")
        return operator, {
            "kv_dtype": rows["format"], **{name: rows[name] for name in names}, "window": same(0),
            "batch": rows["sequences"], "context": (rows["shortest"] + rows["context"]) // 2, **seconds,
        }  # fmt: skip
    if operator == "prefill_attention":
        prompts = prompt_rows(rows)
        return (operator, prompts) if len(prompts["p50_s"]) else None
    if operator == "fused_moe":
        return "moe", {
            "dtype": np.asarray([_EXPERTS[name] for name in rows["format"].tolist()]),
            "hidden": rows["hidden"], "inter": rows["intermediate"] * tp, "topk": rows["top_k"],
            "experts": rows["experts"], "tp": same(tp), "ep": same(1), "routing": same(routing),
            "tokens": rows["tokens"], **seconds,
        }  # fmt: skip
    if operator in ELEMENTWISE:
        sizes = {name: rows.get(name, same(0)) for name in ("columns", "heads", "kv_heads", "head_dim")}
        return "elementwise", {"kernel": same(operator), **sizes, "rows": rows[ELEMENTWISE[operator]], **seconds}
    return None


def _merged(table: str, old: Columns | None, new: Columns) -> Columns:
    """Rows of a shape that the new ones have at any size give way to them; but of prompts shorter than all of those,
    which say what a chunk takes at least."""
    names = (*_KEYS[table], "p50_s")
    if old is None:
        return {name: new[name] for name in names}
    subject = _KEYS[table][: -_AXES[table]]
    shortest: dict[tuple[str | int, ...], float] = {}
    for key, size in zip(_of(new, subject), _lengths(new), strict=True):
        shortest[key] = min(size, shortest.get(key, np.inf))
    keep = [size < shortest.get(key, np.inf) for key, size in zip(_of(old, subject), _lengths(old), strict=True)]
    at = np.flatnonzero(keep)
    return {name: np.concatenate([old[name][at], new[name]]) for name in names}


def _of(columns: Columns, names: tuple[str, ...]) -> Iterator[tuple[str | int, ...]]:
    return zip(*(columns[name].tolist() for name in names), strict=True)


def _lengths(columns: Columns) -> list[float]:
    """Of prompts; no other rows are shorter than others."""
    lengths: list[float] = columns["length"].tolist() if "length" in columns else [0.0] * len(columns["p50_s"])
    return lengths


def find(device: DeviceSpec, folder: Path | None = None) -> tuple[KernelTimes | None, tuple[str, ...]]:
    """What was tuned on the device and holds; and why not the rest. Of several Tritons the one that is installed here
    counts, else, for a GPU that may be elsewhere, the newest."""
    known = {version: path for d, e, version, path in entries(folder) if d == device.name and e == ENGINE}
    if not known:
        return None, ()
    here = _installed("triton")
    if here not in known and device.kind == "cpu":
        what = "Triton is not installed here" if here is None else f"here is {here}"
        return None, (f"kernels on {device.name} were tuned with Triton {', '.join(sorted(known))}, {what}; {AGAIN}",)
    version = here if here in known else max(known, key=_order)
    profile = open_profile(known[version])
    try:
        require_name(profile, device)
    except StaleError as error:
        return None, (str(error),)
    tables, stale = _fresh(profile)
    if not tables:
        return None, stale
    kernels = KernelSet(
        device=device.name,
        device_full_name=profile.environment.device_full_name,
        triton=version,
        sources={name: str(columns["sources"][0]) for name, columns in tables.items()},
        choices=tuple(choice for name, columns in tables.items() for choice in _choices(name, columns)),
    )
    return KernelTimes(profile, kernels, tables), stale


AGAIN = "run `fwopt kernels tune` again"


def require_name(profile: Profile, device: DeviceSpec) -> None:
    """Of a processor, this machine's is known; a GPU's driver is asked when the kernels are loaded."""
    from fwopt_kernels.host import processor

    name = profile.environment.device_full_name
    if device.kind == "cpu" and name != processor():
        raise StaleError(f"{profile.folder}: kernels were tuned on {name}, here is {processor()}; {AGAIN}")


def fresh(profile: Profile, operator: str, sources: str) -> Columns:
    """The operator's rows of kernels compiled from `sources`; refused where all are of others."""
    columns = profile.columns(operator)
    at = columns["sources"] == sources
    if not at.any():
        raise StaleError(
            f"{profile.folder}: {operator} was tuned from kernel sources {str(columns['sources'][0])[:12]}, here they "
            f"are {sources[:12]}; {AGAIN}"
        )
    return {name: values[at] for name, values in columns.items()}


def _fresh(profile: Profile) -> tuple[dict[str, Columns], tuple[str, ...]]:
    """Tables of fwopt's own kernels that hold, and a line for each that does not."""
    from fwopt_kernels.aot import sources
    from fwopt_kernels.registry import OPERATORS

    tables, stale = {}, []
    for name in sorted(set(profile.environment.tables) & set(OPERATORS)):
        try:
            tables[name] = fresh(profile, name, sources(OPERATORS[name]))
        except StaleError as error:
            stale.append(str(error))
    return tables, tuple(stale)


def _choices(operator: str, columns: Columns) -> Iterator[KernelChoice]:
    """The variant that won at each shape that was tuned, smallest shapes first."""
    names = [name for name in columns if name not in NOT_SHAPE]
    rows = sorted(
        (str(columns["format"][i]), tuple(int(columns[name][i]) for name in names), str(columns["variant"][i]))
        for i in np.flatnonzero(columns["chosen"] == 1)
    )
    for format, sizes, variant in rows:
        shape = dict(zip(names, sizes, strict=True))
        yield KernelChoice(operator=operator, format=format, shape=shape, variant=variant)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
