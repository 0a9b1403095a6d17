"""One replayed deployment: text, JSON, one line a request, or the life of a single one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.metrics.records import FINISHED, STATUS_NAMES, Records
from fwopt.report import format as f
from fwopt.sim import SimResult
from fwopt.spec.base import SCHEMA_VERSION
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Distribution, Evaluation
from fwopt.spec.provenance import CODES
from fwopt.workload.writing import packed


def render(candidate: Candidate, result: SimResult, evaluation: Evaluation, notes: Sequence[str]) -> RenderableType:
    """Terminal text: limits first, then latencies, load and evidence."""
    metrics = evaluation.metrics
    head = Text.assemble((candidate.label, "bold"), f"  {candidate.id}")
    table = Table(box=None, pad_edge=False)
    for title in ("", "mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(title, justify="left" if not title else "right")
    for name in ("ttft", "tpot", "itl", "e2e", "queue"):
        d: Distribution = getattr(metrics, name)
        table.add_row(name, *f.spread(d, metrics.finished))
    rejected = "".join(f", {count:,} {reason}" for reason, count in metrics.rejected.items())
    share = evaluation.provenance
    known = ", ".join(f"{getattr(share, code):.0%} {code}" for code in CODES if getattr(share, code) >= 0.005)
    busy, cost = evaluation.busy_share, evaluation.cost
    cached = _share(metrics.cached_prompt_tokens, metrics.prompt_tokens)
    blocks = f"{evaluation.peak_kv_blocks:,} of {evaluation.kv_blocks_per_replica:,} KV blocks"
    lines = [
        f"{metrics.finished:,} of {metrics.requests:,} requests finished{rejected}",
        f"{metrics.requests_per_s:,.2f} requests/s (within limits {metrics.goodput_requests_per_s:,.2f})",
        f"{metrics.output_tokens_per_s:,.0f} output tokens/s, {evaluation.mean_batch:.1f} sequences a step",
        f"{cached} of prompt tokens from the prefix cache, {metrics.preemptions:,} preemptions, peak {blocks}",
        f"replicas busy {busy:.0%} of the time; in {result.host_share:.0%} of that the GPU waits for the host",
        f"device time {known or 'none'}",
    ]
    if cost is not None:
        lines.append(f"{f.usd(cost.usd_per_hour)}/h, {f.usd(cost.usd_per_1m_output_tokens)} per 1M output tokens")
    limits = [
        Text(f"{'kept  ' if s.met else 'MISSED'} {s.slo}: {f.seconds(s.value_s)}", "green" if s.met else "red")
        for s in evaluation.slos
    ]
    return Group(
        head, *limits, table, *(Text(line) for line in lines), *(Text(f"note: {f.plain(n)}", "dim") for n in notes)
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def as_json(candidate: Candidate, result: SimResult, evaluation: Evaluation, notes: Sequence[str]) -> str:
    """One object: metrics, and what the simulation itself did and took."""
    metrics = evaluation.metrics
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "candidate": candidate.model_dump(mode="json"),
            "candidate_id": candidate.id,
            "requests_finished": metrics.finished,
            "requests_rejected": metrics.rejected,
            "iterations": result.iterations,
            "simulate_wall_s": result.wall_s,
            "compile_wall_s": result.compile_s,
            "host_share": result.host_share,
            "evaluation": evaluation.model_dump(mode="json"),
            "notes": list(notes),
        },
        indent=2,
        allow_nan=False,
    )


def _lines(records: Records) -> Iterable[dict[str, Any]]:
    for i in range(len(records)):
        yield {
            "request": i,
            "status": STATUS_NAMES[records.status[i]],
            "arrival_s": _time(records.arrival_s[i]),
            "scheduled_s": _time(records.scheduled_s[i]),
            "first_token_s": _time(records.first_token_s[i]),
            "finish_s": _time(records.finish_s[i]),
            "prompt_tokens": int(records.prompt_tokens[i]),
            "output_tokens": int(records.output_tokens[i]),
            "cached_tokens": int(records.cached_tokens[i]),
            "replica": int(records.replica[i]) if records.replica[i] >= 0 else None,
            "preemptions": int(records.preemptions[i]),
        }


def _time(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 9)


def write_records(records: Records, path: Path) -> None:
    """One JSON line a request, in trace order; appears under its name only when complete."""
    with written_whole(path) as beside, packed(beside, path.suffix) as stream:
        for line in _lines(records):
            stream.write(json.dumps(line).encode() + b"\n")


def life_of(records: Records, index: int) -> str:
    """What happened to one request, step by step, in seconds after its arrival."""
    if index >= len(records):
        raise InputError(f"--request must be below {len(records)} (requests in the trace), got {index}")
    arrival, first, end = records.arrival_s[index], records.first_token_s[index], records.finish_s[index]
    prompt, output = int(records.prompt_tokens[index]), int(records.output_tokens[index])
    lines = [f"request {index}: {prompt:,} prompt and {output:,} output tokens, arrived at {arrival:.3f} s"]
    if records.status[index] != FINISHED:
        return "\n".join([*lines, f"  rejected: {STATUS_NAMES[records.status[index]]}"])
    queue = f.seconds(records.scheduled_s[index] - arrival)
    lines.append(f"  {queue:>10}  scheduled on replica {records.replica[index]}")
    if records.cached_tokens[index]:
        lines.append(f"{'':12}  {records.cached_tokens[index]:,} prompt tokens found in the prefix cache")
    lines.append(f"  {f.seconds(first - arrival):>10}  first token (TTFT)")
    if output > 1:
        tpot = (end - first) / (output - 1)
        lines.append(f"  {f.seconds(end - arrival):>10}  last token: {f.seconds(tpot)} a token after the first (TPOT)")
    if records.preemptions[index]:
        lines.append(f"{'':12}  preempted {records.preemptions[index]} times, computed anew each time")
    return "\n".join(lines)
