"""One live replay: text or JSON, in the words of a simulated one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fwopt.errors import InputError
from fwopt.live.load import ClosedLoop, Load, Poisson, Ramp
from fwopt.live.problems import Lag
from fwopt.live.result import Replay
from fwopt.metrics import summarize
from fwopt.metrics.summary import held_to
from fwopt.report import format as f
from fwopt.spec.base import SCHEMA_VERSION
from fwopt.spec.objective import Slo
from fwopt.spec.outcome import Distribution, Metrics, SloResult

NAMES = ("ttft", "tpot", "itl", "e2e")
"""Queue time happens inside the server: a client cannot see it."""


def refuse_unseen(slos: Sequence[Slo]) -> None:
    """Limits on what only the server knows."""
    for slo in slos:
        if slo.metric == "queue":
            raise InputError(f"{slo}: a client cannot see when a server schedules a request; limit ttft instead")


def judge(replay: Replay, slos: Sequence[Slo]) -> tuple[Metrics, tuple[SloResult, ...]]:
    """Metrics, and each limit beside what was measured."""
    records = replay.records
    if not len(records):
        raise InputError("the replay ended before it offered a single request: there is nothing to measure")
    found = []
    for slo in slos:
        value = held_to(records, slo.metric, slo.statistic)
        found.append(SloResult(slo=slo, value_s=value, met=value is not None and value < slo.limit_s))
    return summarize(records, slos), tuple(found)


def render(replay: Replay, slos: Sequence[Slo], notes: Sequence[str]) -> RenderableType:
    """Terminal text: whether to believe it, limits, latencies, load, and how it was measured."""
    metrics, limits = judge(replay, slos)
    header = replay.header
    endpoint = header.endpoint
    what = f"{endpoint.engine or 'unknown engine'}, {endpoint.api}"
    head = Text.assemble((f.plain(endpoint.model), "bold"), f"  {f.plain(endpoint.url)} ({what})")
    table = Table(box=None, pad_edge=False)
    for title in ("", "mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(title, justify="left" if not title else "right")
    for name in NAMES:
        d: Distribution = getattr(metrics, name)
        table.add_row(name, *f.spread(d, metrics.finished))
    verdict = Text("valid", "green") if replay.valid else Text("INVALID: do not use these numbers", "bold red")
    problems = [
        Text(f"{'INVALID' if p.invalidates else 'note'} {f.plain(str(p))}", _style(p.invalidates))
        for p in replay.problems
    ]
    kept = [
        Text(f"{'kept  ' if s.met else 'MISSED'} {s.slo}: {f.seconds(s.value_s)}", "green" if s.met else "red")
        for s in limits
    ]
    said = [Text(f.plain(line)) for line in _lines(replay, metrics)]
    return Group(head, verdict, *problems, *kept, table, *said, *(Text(f"note: {f.plain(n)}", "dim") for n in notes))


def _style(invalidates: bool) -> str:
    return "red" if invalidates else "yellow"


def _lines(replay: Replay, metrics: Metrics) -> list[str]:
    header = replay.header
    rejected = "".join(f", {count:,} {reason}" for reason, count in metrics.rejected.items())
    lines = [
        f"{metrics.finished:,} of {metrics.requests:,} requests finished{rejected}",
        f"{metrics.requests_per_s:,.2f} requests/s (within limits {metrics.goodput_requests_per_s:,.2f})",
        f"{metrics.output_tokens_per_s:,.0f} output tokens/s in {f.seconds(metrics.duration_s)}",
    ]
    if (replay.rows.cached_usage >= 0).any():
        share = f.percent(metrics.cached_prompt_tokens / max(metrics.prompt_tokens, 1))
        lines.append(f"{share} of prompt tokens from the prefix cache, by the server's count")
    length = "output length forced" if header.forced else "output length not forced"
    lines += [
        f"sent {describe(header.load)}; {_lag(replay.send_lag)} late; clock read {_lag(replay.end.clock_lag)} late",
        f"cache {header.cache.how}; salt '{header.cache.salt}'",
        f"prompts of {header.vocabulary} as {header.prompt_form}; {length}",
    ]
    return lines


def _lag(lag: Lag) -> str:
    return f"p99 {f.seconds(lag.p99_s)}, max {f.seconds(lag.max_s)}"


def describe(load: Load) -> str:
    if isinstance(load, ClosedLoop):
        return f"with {load.concurrency} in flight (closed loop)"
    if isinstance(load, Poisson):
        return f"by Poisson at {load.rate:g}/s (seed {load.seed})"
    if isinstance(load, Ramp):
        return f"at {load.start_rate:g}/s growing to {load.end_rate:g}/s"
    return "at the recorded times" + (f", {load.rate_scale:g} times as fast" if load.rate_scale != 1 else "")


def as_json(replay: Replay, slos: Sequence[Slo], notes: Sequence[str]) -> str:
    """One object: metrics, limits, and everything that says how far to believe them."""
    metrics, limits = judge(replay, slos)
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "source": "measured",
            "valid": replay.valid,
            "problems": [p.model_dump(mode="json") for p in replay.problems],
            "metrics": metrics.model_dump(mode="json"),
            "slos": [s.model_dump(mode="json") for s in limits],
            "send_lag": replay.send_lag.model_dump(mode="json"),
            "end": replay.end.model_dump(mode="json"),
            "header": replay.header.model_dump(mode="json"),
            "notes": list(notes),
        },
        indent=2,
        allow_nan=False,
    )
