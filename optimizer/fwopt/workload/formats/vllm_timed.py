"""vLLM timed traces: what `vllm bench serve --dataset-name timed_trace` reads with its default options (0.24).

The fields are Mooncake's, the units are not: `timestamp` in seconds, one hash for each 16 prompt tokens.
"""

from __future__ import annotations

from fwopt.workload.builder import Builder
from fwopt.workload.formats.base import JsonRows, Options, TraceFormat
from fwopt.workload.formats.mooncake import FIELDS, LABELS, counts_blocks_of
from fwopt.workload.source import Head

BLOCK_TOKENS = 16


def _accepts(head: Head) -> bool:
    return counts_blocks_of(head, BLOCK_TOKENS)


class VllmTimedRows(JsonRows):
    known = frozenset(FIELDS)

    def __init__(self, file: str, head: Head, options: Options) -> None:
        super().__init__(Builder(file, LABELS))
        self.builder.block_tokens = BLOCK_TOKENS

    def row(self, line: bytes) -> None:
        get = self.parse(line).get
        self.builder.add(get("timestamp"), get("input_length"), get("output_length"), blocks=get("hash_ids"))


FORMAT = TraceFormat(
    "vLLM timed trace (timestamp in s, input_length, output_length, hash_ids)", _accepts, VllmTimedRows
)
