"""Step records of the reference engine, summed into parts of the time."""

from __future__ import annotations

from pathlib import Path

from fwopt.engine.records import StepRecord, read_records
from fwopt.regress.results import rounded

IDLE_S = 0.05
"""A longer pause between steps is an engine without work, not a gap."""


def parts_of(file: Path, skip: int) -> tuple[dict[str, float], int]:
    """Engine seconds a request by part, from the records after the first `skip`; and how many records there are."""
    records = list(read_records(file))
    return sum_parts(records[skip:]), len(records)


def sum_parts(records: list[StepRecord]) -> dict[str, float]:
    """Divided by the prompts that were completed. `queueing`: request-seconds spent waiting while steps ran."""
    if not records:
        return {}
    total = dict.fromkeys(
        ("operator:prefill", "operator:decode", "operator:sampling", "cpu gap:schedule", "cpu gap:prepare",
         "cpu gap:output", "cpu gap:between steps", "queueing", "tokens:prefill"), 0.0,
    )  # fmt: skip
    end, requests = None, max(1, sum(r.shape.completed for r in records))
    for r in records:
        forward = r.device_s if r.device_s is not None else r.forward_s
        prefill = sum(length for _, length in r.shape.chunks)
        share = prefill / max(r.shape.tokens, 1)
        total["operator:prefill"] += forward * share
        total["operator:decode"] += forward * (1 - share)
        total["operator:sampling"] += r.sample_s
        total["cpu gap:schedule"] += r.schedule_s
        total["cpu gap:prepare"] += r.prepare_s
        total["cpu gap:output"] += r.output_s
        gap = 0.0 if end is None else r.start_s - end
        total["cpu gap:between steps"] += gap if 0 < gap < IDLE_S else 0.0
        total["queueing"] += r.step_s * r.waiting
        total["tokens:prefill"] += prefill
        end = r.start_s + r.step_s
    return {name: rounded(value / requests) for name, value in total.items()}
