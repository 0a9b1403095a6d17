"""A result held against a history of other sessions.

Between sessions a machine changes in ways that no sample of one session shows. So the unit is the session: the spread
of a history of sessions of the same thing says how far a new one may lie off, and one session against one proves
nothing. Three things make the answer inconclusive before any test: too short a history; and, unless the change is far
larger, a machine that was measurably faster or slower than in the history (probes), and drift, inside the new session
or over the history.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from fwopt.regress.estimate import Effect, Floats, point
from fwopt.regress.floor import stated
from fwopt.regress.judge import Finding, MinEffect, Name, samples
from fwopt.regress.sequential import LOST_SHARE, holm
from fwopt.regress.trials import without_samples
from fwopt.spec.bench import Metric, Rules
from fwopt.spec.bench_result import BenchResult, Result

CLEAR = 3.0
"""A change decides in spite of drift where it is so many times larger: a build may feel more of it than the probe."""
TREND_ALPHA = 0.01
"""Of Kendall's test that samples depend on when they were taken."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A change of the machine or of the base, in log units."""

    log: float
    says: str


def against_history(history: Sequence[Result], head: Result, names: Sequence[str], rules: Rules) -> dict[Name, Finding]:
    """Noisy benches `names` of head against sessions of the base, oldest first."""
    found: dict[Name, Finding] = {}
    open_: dict[Name, tuple[Effect, MinEffect]] = {}
    drifts: dict[Name, str] = {}
    for bench in head.benches:
        if bench.name not in names:
            continue
        every = [b for result in history for b in result.benches if b.name == bench.name]
        for metric in bench.metrics:
            name = bench.name, metric.name
            past = [b for b in every if len(_counted(b, metric))]
            settled = without_samples(every[-1], bench, metric.series) or _too_little(len(past), rules)
            if settled is not None:
                found[name] = settled
                continue
            effect = session_effect(past, bench, metric)
            least = _least(effect, metric, rules)
            drift = _drift(history, head, past, bench, metric, least)
            if drift is not None and abs(effect.log) <= least.log + CLEAR * abs(drift.log):
                found[name] = Finding(
                    "inconclusive", drift.says, effect, least, blocks=effect.units, alpha=rules.alpha_pass
                )
            else:
                open_[name] = effect, least
            if drift is not None:
                drifts[name] = drift.says
    decided = _decided(open_, rules)
    return found | {
        name: replace(f, reason=f"{f.reason}, although {drifts[name]}") if name in drifts else f
        for name, f in decided.items()
    }


def session_effect(past: Sequence[BenchResult], head: BenchResult, metric: Metric) -> Effect:
    """A new session against the mean of old ones; the error is that of a prediction."""
    sign = 1.0 if metric.better == "lower" else -1.0
    logs = [math.log(point(_counted(bench, metric), metric.quantile)) for bench in past]
    new = math.log(point(_counted(head, metric), metric.quantile))
    error = statistics.stdev(logs) * math.sqrt(1 + 1 / len(logs))
    return Effect(sign * (new - statistics.fmean(logs)), error, len(logs), len(logs) - 1.0)


def _counted(bench: BenchResult, metric: Metric) -> Floats:
    """Samples of the runs that count: what a client spoilt says nothing of the server."""
    return samples(tuple(run for run in bench.runs if run.problem is None), metric.series)


def _too_little(sessions: int, rules: Rules) -> Finding | None:
    if sessions >= rules.history_sessions:
        return None
    reason = (
        f"measured in another session than the base, which has {sessions} of {rules.history_sessions} sessions: "
        "nothing says how far sessions of equal builds lie apart; measure both arms interleaved, or save more sessions"
    )
    return Finding("inconclusive", reason, blocks=sessions)


def _least(effect: Effect, metric: Metric, rules: Rules) -> MinEffect:
    given = stated((metric.min_effect, rules.min_effect))
    if given is not None:
        return MinEffect(given, "stated")
    width = float(special.stdtrit(effect.freedom, 1 - rules.alpha_pass)) * effect.error * 1.5
    return MinEffect(min(max(width, math.log1p(rules.floor)), math.log1p(rules.ceiling)), "sessions")


def _decided(open_: dict[Name, tuple[Effect, MinEffect]], rules: Rules) -> dict[Name, Finding]:
    worse = holm({name: effect.p_worse() for name, (effect, _) in open_.items()})
    better = holm({name: effect.p_better() for name, (effect, _) in open_.items()})
    alpha = rules.alpha * (1 - LOST_SHARE)
    found: dict[Name, Finding] = {}
    for name, (effect, least) in open_.items():
        not_worse = effect.p_better(least.log)
        verdict, reason, improved = (
            "inconclusive",
            "neither a change beyond the minimum effect nor its absence is shown",
            False,
        )
        if worse[name] <= alpha and effect.log > least.log:
            verdict, reason = "fail", "worse than sessions of the base are, by more than the minimum effect"
        elif not_worse <= rules.alpha_pass:
            improved = better[name] <= alpha and -effect.log > least.log
            verdict, reason = "pass", "within what sessions of the base are"
        found[name] = Finding(
            verdict, reason, effect, least, worse[name], not_worse, improved, effect.units, 1, rules.alpha_pass  # type: ignore[arg-type]
        )  # fmt: skip
    return found


def _drift(
    history: Sequence[Result],
    head: Result,
    past: Sequence[BenchResult],
    bench: BenchResult,
    metric: Metric,
    least: MinEffect,
) -> Drift | None:
    """The machine, not the build, may be what changed; None: nothing beyond the minimum effect."""
    speeds = [statistics.median(p.seconds for p in result.probes) for result in history if result.probes]
    if speeds and head.probes:
        now = statistics.median(p.seconds for p in head.probes)
        change = math.log(now / statistics.median(speeds))
        if abs(change) > least.log:
            which = "slower" if change > 0 else "faster"
            return Drift(change, f"the machine itself was {abs(math.expm1(change)):.1%} {which} (probes)")
    good = [r for r in bench.runs if r.problem is None and r.samples.get(metric.series)]
    levels = [statistics.median(r.samples[metric.series]) for r in good]
    inside = trend([r.started_s for r in good], levels)
    if inside is not None and abs(inside) > least.log:
        return Drift(inside, f"the samples drifted by {math.expm1(inside):+.1%} while head was measured")
    over = trend(range(len(past)), [point(_counted(b, metric), metric.quantile) for b in past])
    if over is not None and abs(over) > least.log:
        return Drift(over, f"the base itself drifted by {math.expm1(over):+.1%} over its {len(past)} sessions")
    return None


def trend(when: Sequence[float], values: Sequence[float]) -> float | None:
    """Drift from first to last in log units, by Theil and Sen; None: Kendall's test finds none, or too few values."""
    if len(values) < 4:
        return None
    from scipy import stats  # takes longer to import than everything else here

    x, y = np.asarray(when, np.float64), np.log(np.asarray(values, np.float64))
    tau = stats.kendalltau(x, y)
    if not tau.pvalue < TREND_ALPHA:
        return None
    return float(stats.theilslopes(y, x).slope * (x[-1] - x[0]))
