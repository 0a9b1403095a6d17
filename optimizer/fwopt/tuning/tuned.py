"""Times of kernel variants in the profile store: `profiles/<device>/kernels-<Triton version>/`, one table an operator.

A row is one variant at one shape; `chosen` marks the variant that won there. Rows carry the hash of the sources that
the kernel was compiled from: other sources, another Triton or another GPU make a row stale, and a stale row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fwopt import __version__
from fwopt.errors import FwoptError, InputError, UnmeasuredError
from fwopt.perf.environment import Measured
from fwopt.perf.store import Columns, Profile, open_profile
from fwopt.perf.write import NewTable, add_measurements
from fwopt.tuning.family import Row
from fwopt.tuning.operators import load_operator, targets
from fwopt_kernels.choice import Choice, Choices

if TYPE_CHECKING:
    from fwopt_kernels.contract import Variant
    from fwopt_kernels.host import Host

ENGINE = "kernels"
_OWN = ("format", "variant", "default", "chosen", "calls", "p20_s", "p50_s", "p80_s", "samples", "sources")


class StaleError(FwoptError):
    """Tuned times that do not hold for what is here."""


def folder_of(root: Path, device: str, triton: str) -> Path:
    return root / device / f"{ENGINE}-{triton}"


def keep(
    root: Path,
    device: str,
    host: Host,
    rows: Mapping[str, Sequence[Row]],
    sources: Mapping[str, str],
    *,
    when: str,
    machine: dict[str, str],
    load: str,
    command: str,
) -> Path:
    """Add rows, operator by operator, to the store; those of the same format and shape give way."""
    tables = {}
    for operator, found in rows.items():
        columns = [_columns(row, sources[operator]) for row in found]
        subject = ("format", *(name for name, _ in found[0].shape))
        kernels = tuple(sorted({row.variant for row in found}))
        tables[operator] = NewTable(
            columns, subject, kernels, notes=(f"compiled from sources {sources[operator][:16]}",)
        )
    measured = Measured(
        what=f"kernels {', '.join(sorted(rows))}",
        date=when,
        fwopt_version=__version__,
        machine={**machine, "gpu_name": host.name, "torch": host.torch, "triton": host.triton},
        load=load,
        command=command,
        notes=("each variant found correct on this device before it was timed; cold L2, in a CUDA graph on a GPU",),
    )
    return add_measurements(root, device, host.name, ENGINE, host.triton, tables, measured)


def _columns(row: Row, sources: str) -> dict[str, str | int | float]:
    return {
        "format": row.format, **dict(row.shape), "variant": row.variant, "default": int(row.default),
        "chosen": int(row.chosen), "calls": float(row.calls), "p20_s": row.p20_s, "p50_s": row.p50_s,
        "p80_s": row.p80_s, "samples": row.samples, "sources": sources,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was tuned on one device with one Triton."""

    profile: Profile

    @classmethod
    def open(cls, root: Path, device: str, host: Host) -> Tuned:
        """For this very device and Triton; refused, with the reason, where only others were tuned."""
        folder = folder_of(root, device, host.triton)
        if not folder.exists():
            others = sorted(p.name.partition("-")[2] for p in (root / device).glob(f"{ENGINE}-*"))
            if others:
                raise StaleError(
                    f"kernels on {device} were tuned with Triton {', '.join(others)}, here is {host.triton}, "
                    "which compiles them differently; run `fwopt kernels tune` again"
                )
            raise UnmeasuredError(f"no kernels were tuned on {device}; run `fwopt kernels tune` there")
        profile = open_profile(folder)
        name = profile.environment.device_full_name
        if name != host.name:
            raise StaleError(
                f"{folder}: kernels were tuned on {name}, here is {host.name}; run `fwopt kernels tune` again"
            )
        return cls(profile)

    def choices(self, operator: str) -> list[Choice]:
        """The variant that won at each shape that was tuned."""
        columns = self.fresh(operator)
        names = [name for name in columns if name not in _OWN]
        found = []
        for i in np.flatnonzero(columns["chosen"] == 1):
            format = str(columns["format"][i])
            known = {v.id: v for v in load_operator(operator).space(format).variants()}
            if str(columns["variant"][i]) in known:  # else the torch fallback
                shape = {name: int(columns[name][i]) for name in names}
                found.append(Choice(operator, format, shape, known[str(columns["variant"][i])]))
        return found

    def best(self, operator: str, format: str, shape: Mapping[str, int]) -> Variant:
        """Variant of the nearest tuned shape, by the distance of its sizes in factors of two."""
        try:
            found = Choices(self.choices(operator)).best(operator, format, **shape)
        except ValueError as error:
            raise InputError(str(error)) from None
        if found is None:
            raise UnmeasuredError(f"{operator}: nothing was tuned in format {format}")
        return found

    def fresh(self, operator: str) -> Columns:
        """The operator's table; refused where it was compiled from other sources."""
        from fwopt_kernels.aot import sources as sources_of

        columns = self.profile.columns(operator)
        sources, here = columns["sources"], sources_of(targets()[operator])
        if (sources != here).any():
            raise StaleError(
                f"{self.profile.folder}: {operator} was tuned from kernel sources {str(sources[0])[:12]}, here they "
                f"are {here[:12]}; run `fwopt kernels tune` again"
            )
        return columns
