"""Requests without an answer, and runs that crash now and then, have no latency: they are a metric of their own.

The unit is the run, for failures come in bunches: more runs of head than of base must have lost more than the median
run of both arms did. Where most runs lose nothing, those are the runs that lose anything.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fwopt.regress.sequential import LOST_SHARE, holm
from fwopt.spec.bench import Rules
from fwopt.spec.bench_result import BenchResult, Result, Run
from fwopt.spec.comparison import MetricVerdict, Verdict


def lost(ours: Mapping[str, BenchResult], head: Result, rules: Rules) -> list[MetricVerdict]:
    """Of each bench in which something was lost, but not every run of head: all its other metrics say that."""
    counted = {bench.name: (_losses(ours[bench.name]), _losses(bench)) for bench in head.benches}
    told = [
        bench
        for bench in head.benches
        if any(map(sum, counted[bench.name])) and any(run.problem is None for run in bench.runs)
    ]
    adjusted = holm({bench.name: _p_worse(*counted[bench.name]) for bench in told if not bench.exact})
    return [_verdict(bench, *counted[bench.name], adjusted.get(bench.name), rules) for bench in told]


def _verdict(bench: BenchResult, base: list[int], head: list[int], p: float | None, rules: Rules) -> MetricVerdict:
    """`p`: None where figures have no noise."""
    was, now = (sum(losses) / max(1, len(losses)) for losses in (base, head))
    verdict: Verdict = "pass" if now <= was else "inconclusive"
    if now > was and (p is None or p <= rules.alpha * LOST_SHARE):
        verdict = "fail"
    words = [f"lost {sum(x)} in {sum(v > 0 for v in x)} of {len(x)}" for x in (head, base)]
    return MetricVerdict(
        bench=bench.name, metric="lost", unit="requests/run", better="lower", verdict=verdict, improved=False,
        base=was, head=now, effect=None, low=None, high=None, min_effect=None, min_effect_from=None,
        p_worse=p, p_not_worse=None, blocks=len(head), look=None, reason=f"head {words[0]} runs, base {words[1]}",
    )  # fmt: skip


def _p_worse(base: list[int], head: list[int]) -> float:
    """Fisher's exact test of runs above the median of all runs."""
    from scipy import stats  # takes longer to import than everything else here

    usual = float(np.median([*base, *head]))
    above = [sum(losses > usual for losses in arm) for arm in (head, base)]
    table = [[n, len(arm) - n] for n, arm in zip(above, (head, base), strict=True)]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def _losses(bench: BenchResult) -> list[int]:
    """Run by run. Live runs that the client spoilt are nobody's fault."""

    def of(run: Run) -> int:
        return run.lost + (run.problem is not None and bench.kind != "live")

    return [of(run) for run in bench.runs]
