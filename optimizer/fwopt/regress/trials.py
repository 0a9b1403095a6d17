"""From two bench results of one session to metrics that can be looked at."""

from __future__ import annotations

from collections.abc import Mapping

from fwopt.regress.judge import Finding, Name, Trial, blocks_of, min_effect
from fwopt.regress.order import pair
from fwopt.spec.bench import Rules
from fwopt.spec.bench_result import BenchResult


def trials_of(
    base: BenchResult, head: BenchResult, rules: Rules, known: Mapping[Name, Trial] | None = None
) -> tuple[dict[Name, Trial], dict[Name, Finding]]:
    """Metrics to judge; and those whose samples allow no verdict, with the reason. `known`: of the same session, when
    it had fewer blocks; what was computed for those stands."""
    paired = pair(base.runs, head.runs)
    trials: dict[Name, Trial] = {}
    settled: dict[Name, Finding] = {}
    for metric in head.metrics:
        name = head.name, metric.name
        empty = without_samples(base, head, metric.series)
        if empty is not None:
            settled[name] = empty
            continue
        if paired.reason is not None:
            settled[name] = Finding("inconclusive", paired.reason, blocks=len(paired.blocks))
            continue
        before = (known or {}).get(name)
        if before is not None:
            before.blocks = blocks_of(paired, metric.series)
            trials[name] = before
            continue
        least = min_effect(base, head, metric, rules)
        if least is None:
            reason = "no A/A blocks and no stated minimum effect; state one, for example --min-effect 3%"
            settled[name] = Finding("inconclusive", reason, blocks=len(paired.blocks))
            continue
        trials[name] = Trial(metric, least, blocks_of(paired, metric.series))
    return trials, settled


def without_samples(base: BenchResult, head: BenchResult, series: str) -> Finding | None:
    """A run that measured nothing proves nothing: it fails."""
    for arm, bench in (("head", head), ("base", base)):
        good = [run for run in bench.runs if run.problem is None]
        if any(run.samples.get(series) for run in good):
            continue
        problems = [run.problem for run in bench.runs if run.problem is not None]
        said = f": {problems[-1]}" if problems else ""
        return Finding("fail", f"{arm} has no samples of {series}{said}")
    return None
