"""The same requests, arriving faster or slower."""

from __future__ import annotations

import math
from dataclasses import replace

from fwopt.errors import InputError
from fwopt.workload.columns import Workload
from fwopt.workload.digest import with_digest


def scale_rate(workload: Workload, factor: float) -> Workload:
    """Multiply the arrival rate: every gap is divided by `factor`, burstiness and order stay.

    What it cannot do: more real users also mean other sessions side by side, not the same ones sped up.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"rate scale must be above zero and finite, got {factor}")
    if factor == 1:
        return workload
    return with_digest(replace(workload, arrival_s=workload.arrival_s / factor))
