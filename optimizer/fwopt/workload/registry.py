"""The trace formats. Adding one: a file in `formats/` with a `FORMAT`, and a line here."""

from __future__ import annotations

import importlib
from typing import cast

from fwopt.errors import TraceError, UnknownNameError
from fwopt.workload.formats.base import TraceFormat
from fwopt.workload.source import Head

FORMATS: dict[str, str] = {
    "fwopt": "fwopt.workload.formats.own:FORMAT",
    "mooncake": "fwopt.workload.formats.mooncake:FORMAT",
    "azure": "fwopt.workload.formats.azure:FORMAT",
    "servegen": "fwopt.workload.formats.servegen:FORMAT",
    "openai": "fwopt.workload.formats.openai_log:FORMAT",
    "burstgpt": "fwopt.workload.formats.burstgpt:FORMAT",
    "vllm-timed": "fwopt.workload.formats.vllm_timed:FORMAT",
    "otel": "fwopt.workload.formats.otel:FORMAT",
}


def load(name: str) -> TraceFormat:
    if name not in FORMATS:
        raise UnknownNameError("trace format", name, FORMATS)
    module, _, attribute = FORMATS[name].partition(":")
    return cast(TraceFormat, getattr(importlib.import_module(module), attribute))


def detect(head: Head, file: str) -> str:
    """The one format that accepts the file's first lines."""
    found = [name for name in FORMATS if load(name).accepts(head)]
    if len(found) == 1:
        return found[0]
    if not head.first:
        raise TraceError(file, None, "trace", "must hold at least one request", "an empty file")
    if found:
        rule = f"could be {' or '.join(found)}; say which with --format"
    elif head.first.lstrip().startswith(b"["):
        rule = "must be one JSON object a line; `jq -c '.[]'` makes lines of an array"
    elif any({"timestamp", "input_length"} <= row.keys() for row in head.objects):
        rule = "leaves the unit of timestamp open; say --format mooncake (ms) or --format vllm-timed (s)"
    else:
        rule = f"must be one of {', '.join(FORMATS)}; see docs/workloads.md, or say which with --format"
    raise TraceError(file, 1, "format", rule, _shape(head))


def _shape(head: Head) -> str:
    """What the first line looks like, without its values."""
    if head.objects:
        return "JSON with " + ", ".join(sorted(head.objects[0])[:8])
    if head.columns and all(len(name) < 40 for name in head.columns):
        return "CSV with " + ", ".join(sorted(head.columns)[:8])
    if head.first.lstrip().startswith(b"["):
        return "an array"
    return "broken JSON" if head.first.lstrip().startswith(b"{") else f"{len(head.first)} bytes of text"
