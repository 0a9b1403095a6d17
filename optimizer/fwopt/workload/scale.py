"""The same requests, arriving faster or slower."""

from __future__ import annotations

from dataclasses import replace

from fwopt.errors import InputError
from fwopt.workload.columns import Workload
from fwopt.workload.digest import with_digest

SLOWEST, FASTEST = 1e-6, 1e6
"""Beyond these a factor is a slip of the hand, and times lose their digits."""


def scale_rate(workload: Workload, factor: float) -> Workload:
    """Multiply the arrival rate: every gap is divided by `factor`, burstiness and order stay.

    What it cannot do: more real users also mean other sessions side by side, not the same ones sped up.
    """
    if not SLOWEST <= factor <= FASTEST:
        raise InputError(f"rate scale must be between {SLOWEST:g} and {FASTEST:,.0f}, got {factor:g}")
    if factor == 1:
        return workload
    return with_digest(replace(workload, arrival_s=workload.arrival_s / factor))
