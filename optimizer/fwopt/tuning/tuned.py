"""Times of kernel variants in the profile store: `profiles/<device>/kernels-<Triton version>/`, one table an operator.

A row is one variant at one shape; `chosen` marks the variant that won there. Rows carry the hash of the sources that
the kernel was compiled from: other sources, another Triton or another GPU make a row stale, and a stale row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fwopt import __version__
from fwopt.perf.environment import Measured
from fwopt.perf.kernel_times import ENGINE
from fwopt.perf.write import NewTable, add_measurements
from fwopt.tuning.family import Row

if TYPE_CHECKING:
    from fwopt_kernels.host import Host


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
