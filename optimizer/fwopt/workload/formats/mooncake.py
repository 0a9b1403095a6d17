"""Mooncake JSON lines (kvcache-ai/Mooncake, FAST'25 release, Apache-2.0).

`timestamp` in whole milliseconds, `input_length`, `output_length`, `hash_ids`: one id for each 512 prompt tokens,
the last block possibly partial, equal ids meaning equal prefixes.
"""

from __future__ import annotations

from fwopt.workload.builder import Builder
from fwopt.workload.formats.base import JsonRows, Options, TraceFormat
from fwopt.workload.source import Head

BLOCK_TOKENS = 512
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
LABELS = {
    "arrival_s": "timestamp",
    "prompt_tokens": "input_length",
    "output_tokens": "output_length",
    "prefix_blocks": "hash_ids",
}


def counts_blocks_of(head: Head, block_tokens: int) -> bool:
    """Whether the first lines are length traces with one hash for each `block_tokens` prompt tokens."""
    rows = [row for row in head.objects if row.keys() >= set(FIELDS)]
    found = [
        len(row["hash_ids"]) == -(-row["input_length"] // block_tokens)
        for row in rows
        if isinstance(row["hash_ids"], list) and isinstance(row["input_length"], int)
    ]
    return bool(found) and sum(found) > len(found) / 2


def _accepts(head: Head) -> bool:
    whole = all(isinstance(row.get("timestamp"), int) for row in head.objects)
    return whole and counts_blocks_of(head, BLOCK_TOKENS)


class MooncakeRows(JsonRows):
    known = frozenset(FIELDS)

    def __init__(self, file: str, head: Head, options: Options) -> None:
        super().__init__(Builder(file, LABELS, ticks_per_s=1000))
        self.builder.block_tokens = BLOCK_TOKENS

    def row(self, line: bytes) -> None:
        get = self.parse(line).get
        self.builder.add(get("timestamp"), get("input_length"), get("output_length"), blocks=get("hash_ids"))


FORMAT = TraceFormat("Mooncake JSONL (timestamp in ms, input_length, output_length, hash_ids)", _accepts, MooncakeRows)
