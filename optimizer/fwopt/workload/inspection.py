"""`fwopt inspect` as data: how the file was read, what the workload is like, and what to keep in mind."""

from __future__ import annotations

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.workload.reading import ReadResult
from fwopt.workload.summary import Statistics, statistics

_BURSTY_CV = 3.0
_THIN_TAIL_REQUESTS = 1000


class Inspection(Frozen):
    """What `fwopt inspect --json` prints."""

    schema_version: int = SCHEMA_VERSION
    file: str
    format: str
    lines: int
    """Lines that are not blank."""
    skipped_count: int
    """Bad lines, or spans, left out (`--skip-bad`)."""
    skipped_by_rule: dict[str, int]
    skipped_first: tuple[str, ...]
    notes: tuple[str, ...]
    """How the file was read."""
    remarks: tuple[str, ...]
    """What the numbers mean for sizing."""
    statistics: Statistics


def inspect(file: str, result: ReadResult) -> Inspection:
    found = statistics(result.workload)
    return Inspection(
        file=file,
        format=result.format,
        lines=result.lines,
        skipped_count=result.skipped_count,
        skipped_by_rule=result.skipped_by_rule,
        skipped_first=tuple(str(error) for error in result.skipped),
        notes=result.notes,
        remarks=remarks(found),
        statistics=found,
    )


def remarks(s: Statistics) -> tuple[str, ...]:
    said = []
    grain, rate = s.grain, s.rate
    if grain.coarse:
        said.append(
            f"arrivals tick every {grain.tick_s:.3g} s, up to {grain.most_at_once} at once: a TTFT tail may be the "
            f"tick, not the server, and burstiness under {grain.tick_s:.3g} s is the clock's"
        )
    elif rate.gap_cv is not None and rate.gap_cv > _BURSTY_CV:
        said.append(
            f"very bursty (gap CV {rate.gap_cv:.1f}, Poisson 1): latency is decided in the peak seconds, "
            "not by the mean rate"
        )
    if rate.mean_per_s is None and s.requests > 1:
        said.append("all requests arrive at one moment: a batch; arrival rates and peaks are undefined")
    if s.prefix is None:
        said.append("no prefix information: nothing can be credited to a prefix cache")
    elif s.prefix.informed_share < 1:
        said.append(f"requests without prefix blocks: {1 - s.prefix.informed_share:.1%}; the hit share is a floor")
    if len([m for m in s.models if m.name]) > 1:
        said.append("several models share this trace, and only requests of one model share prefixes")
    if s.requests < _THIN_TAIL_REQUESTS:
        said.append(f"few requests ({s.requests:,}): p99 rests on {max(s.requests // 100, 1)} of them")
    return tuple(said)
