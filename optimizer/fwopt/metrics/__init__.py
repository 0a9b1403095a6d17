"""Request records and the one function that turns them into metrics."""

from __future__ import annotations

from fwopt.metrics.records import Records
from fwopt.metrics.summary import statistic, summarize

__all__ = ["Records", "statistic", "summarize"]
