"""Recorded requests: read any trace format into columns, describe them, write fwopt's own format."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwopt.workload.columns import Workload
    from fwopt.workload.reading import ReadResult, read
    from fwopt.workload.scale import scale_rate
    from fwopt.workload.summary import Statistics, statistics
    from fwopt.workload.writing import write_own

__all__ = ["ReadResult", "Statistics", "Workload", "read", "scale_rate", "statistics", "write_own"]

_HOME = {
    "ReadResult": "reading",
    "Statistics": "summary",
    "Workload": "columns",
    "read": "reading",
    "scale_rate": "scale",
    "statistics": "summary",
    "write_own": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"fwopt.workload.{_HOME[name]}"), name)
