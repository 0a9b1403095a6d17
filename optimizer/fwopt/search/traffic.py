"""The requests a plan is made for: read, narrowed to one model, scaled, with what was left out said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fwopt.errors import InputError, UnknownNameError
from fwopt.workload import read, scale_rate
from fwopt.workload.columns import Workload
from fwopt.workload.inspection import remarks
from fwopt.workload.select import keep_requests
from fwopt.workload.summary import statistics


@dataclass(frozen=True, slots=True)
class Traffic:
    """A workload to plan for."""

    workload: Workload
    """Already narrowed and scaled."""
    model: str | None
    """The model that the trace names, where it names one."""
    notes: tuple[str, ...]


def load_traffic(
    trace: Path, *, format: str | None, skip_bad: bool, only_model: str | None, rate_scale: float
) -> Traffic:
    found = read(trace, format=format, skip_bad=skip_bad)
    notes = list(found.notes)
    if found.skipped_count:
        first = next(iter(found.skipped_by_rule.items()))
        notes.append(
            f"{found.skipped_count} of {found.lines} lines left out (--skip-bad), mostly {first[0]} ({first[1]})"
        )
    workload, model, more = _one_model(found.workload, only_model)
    notes += more
    if rate_scale != 1:
        notes.append(f"arrivals of the trace are replayed {rate_scale:g} times as fast")
    scaled = scale_rate(workload, rate_scale)
    return Traffic(scaled, model, (*notes, *remarks(statistics(scaled))))


def _one_model(workload: Workload, only: str | None) -> tuple[Workload, str | None, list[str]]:
    """One deployment serves one model: a trace of several must say which."""
    names = workload.models
    if only is None:
        if len(names) > 1:
            counts = np.bincount(workload.model[workload.model >= 0], minlength=len(names))
            ranked = sorted(zip(counts.tolist(), names, strict=True), reverse=True)
            shown = ", ".join(f"{name} ({count} requests)" for count, name in ranked[:5])
            raise InputError(
                f"the trace holds {len(names)} models: {shown}; plan for one at a time, "
                f"for example --only-model {ranked[0][1]}"
            )
        return workload, names[0] if names else None, []
    if only not in names:
        raise UnknownNameError("model in the trace", only, names or ("(the trace names none)",))
    keep = workload.model == names.index(only)
    left = len(workload) - int(keep.sum())
    notes = [f"{left} of {len(workload)} requests name another model or none and are left out (--only-model {only})"]
    return (keep_requests(workload, keep), only, notes) if left else (workload, only, [])
