"""BurstGPT traces (HPMLL/BurstGPT, CC-BY-4.0).

CSV: `Timestamp` (s), `Model`, `Request tokens`, `Response tokens`, `Total tokens`, `Log Type`; release 2 adds
`Session ID` and `Elapsed time`. A failed request has 0 response tokens; the *without_fails* files hold none.
"""

from __future__ import annotations

from fwopt.workload.builder import Builder
from fwopt.workload.formats.base import CsvRows, Options, TraceFormat
from fwopt.workload.source import Head

REQUIRED = ("Timestamp", "Model", "Request tokens", "Response tokens")


def _accepts(head: Head) -> bool:
    return len(head.columns.intersection(REQUIRED)) >= 3


class BurstGptRows(CsvRows):
    def __init__(self, file: str, head: Head, options: Options) -> None:
        labels = {"arrival_s": "Timestamp", "model": "Model", "session_id": "Session ID"}
        labels |= {"prompt_tokens": "Request tokens", "output_tokens": "Response tokens"}
        super().__init__(Builder(file, labels), REQUIRED, ("Session ID",))

    def row(self, line: bytes) -> None:
        cells, at = self.cells(line), self.at
        session = cells[at["Session ID"]].strip() if "Session ID" in at else ""
        self.builder.add(
            self.seconds("arrival_s", cells[at["Timestamp"]]),
            self.whole("prompt_tokens", cells[at["Request tokens"]]),
            self.whole("output_tokens", cells[at["Response tokens"]]),
            session=session or None,
            model=cells[at["Model"]].strip(),
        )


FORMAT = TraceFormat("BurstGPT CSV (Timestamp, Model, Request tokens, Response tokens, …)", _accepts, BurstGptRows)
