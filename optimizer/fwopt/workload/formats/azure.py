"""Azure LLM inference traces, 2023 and 2024 (Azure/AzurePublicDataset, CC-BY-4.0).

CSV: `TIMESTAMP` (UTC, up to seven fractional digits), `ContextTokens`, `GeneratedTokens`.
"""

from __future__ import annotations

from fwopt.workload.builder import Builder
from fwopt.workload.clock import NANOSECONDS, Clock
from fwopt.workload.formats.base import CsvRows, Options, TraceFormat
from fwopt.workload.source import Head

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def _accepts(head: Head) -> bool:
    return len(head.columns.intersection(COLUMNS)) >= 2


class AzureRows(CsvRows):
    def __init__(self, file: str, head: Head, options: Options) -> None:
        labels = dict(zip(("arrival_s", "prompt_tokens", "output_tokens"), COLUMNS, strict=True))
        super().__init__(Builder(file, labels, ticks_per_s=NANOSECONDS), COLUMNS)
        self._clock = Clock()

    def row(self, line: bytes) -> None:
        cells, at = self.cells(line), self.at
        stamp = cells[at["TIMESTAMP"]]
        ticks = self._clock.nanoseconds(stamp)
        if ticks is None:
            self.builder.bad("arrival_s", "must be a time like 2023-11-16 18:17:03.9799600", stamp)
        self.builder.add(
            ticks,
            self.whole("prompt_tokens", cells[at["ContextTokens"]]),
            self.whole("output_tokens", cells[at["GeneratedTokens"]]),
        )


FORMAT = TraceFormat("Azure LLM CSV (TIMESTAMP, ContextTokens, GeneratedTokens)", _accepts, AzureRows)
