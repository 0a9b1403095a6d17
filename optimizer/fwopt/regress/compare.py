"""Two results -> one comparison. The same function judges a session that just ended and files of last month."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import UTC

from fwopt import __version__
from fwopt.regress.estimate import point, relative
from fwopt.regress.explain import explain
from fwopt.regress.judge import Finding, MinEffect, Name, Trial, judge, samples
from fwopt.regress.kinship import moment, require_kin
from fwopt.regress.lost import lost
from fwopt.regress.sessions import against_history, trend
from fwopt.regress.trials import trials_of, without_samples
from fwopt.spec.bench import Metric, Rules
from fwopt.spec.bench_result import BenchResult, Result
from fwopt.spec.comparison import Comparison, Design, MetricVerdict, Verdict


def compare(
    base: Result,
    head: Result,
    rules: Rules,
    *,
    history: Sequence[Result] = (),
    across: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """`history`: sessions of the base, oldest first and the base last; used where both were not measured together."""
    require_kin(base, head, rules, across)
    ours = {bench.name: bench for bench in base.benches}
    together = base.session == head.session
    noisy = [bench.name for bench in head.benches if not bench.exact]
    findings = _exact(ours, head, rules)
    if together:
        findings |= _interleaved(ours, head, noisy, rules)
    elif noisy:
        findings |= against_history(history or (base,), head, noisy, rules)
    metrics = [
        _verdict(ours[bench.name], bench, metric, findings[bench.name, metric.name])
        for bench in head.benches
        for metric in bench.metrics
    ]
    metrics += lost(ours, head, rules)
    design: Design = "exact" if not noisy else "interleaved" if together else "sessions"
    explained = {bench.name: explain(ours[bench.name].runs, bench.runs) for bench in head.benches}
    return Comparison(
        fwopt_version=__version__,
        suite=head.suite,
        verdict=overall([m.verdict for m in metrics]),
        design=design,
        base=named(base),
        head=named(head),
        metrics=tuple(metrics),
        explanation={name: parts for name, parts in explained.items() if parts},
        notes=(*notes, *_notes(base, head, together)),
    )


def _interleaved(
    ours: dict[str, BenchResult], head: Result, noisy: Collection[str], rules: Rules
) -> dict[Name, Finding]:
    trials: dict[Name, Trial] = {}
    findings: dict[Name, Finding] = {}
    for bench in head.benches:
        if bench.name in noisy:
            found, settled = trials_of(ours[bench.name], bench, rules)
            trials |= found
            findings |= settled
    return findings | judge(trials, rules)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One metric that fails fails the suite; nothing measured is a failure too."""
    if not verdicts or "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def named(result: Result) -> str:
    when = moment(result).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{result.commit[:12]} ({when})" if result.commit else when


def _exact(ours: dict[str, BenchResult], head: Result, rules: Rules) -> dict[Name, Finding]:
    """Figures without noise: any change beyond the minimum effect is one."""
    found: dict[Name, Finding] = {}
    for bench in head.benches:
        for metric in bench.metrics if bench.exact else ():
            name, base = (bench.name, metric.name), ours[bench.name]
            empty = without_samples(base, bench, metric.name)
            if empty is not None:
                found[name] = empty
                continue
            was, now = (float(samples(b.runs, metric.name)[0]) for b in (base, bench))
            change = math.log(now / was) * (1 if metric.better == "lower" else -1)
            given = metric.min_effect or rules.min_effect
            least = math.log1p(given or rules.exact_effect)
            source = MinEffect(least, "stated" if given else "exact")
            worse, better = change > least, -change > least
            words = "worse by more than the minimum effect" if worse else "not worse by the minimum effect"
            found[name] = Finding(
                "fail" if worse else "pass", f"exact: {words}", min_effect=source, improved=better, blocks=1, look=1
            )
    return found


def _verdict(base: BenchResult, head: BenchResult, metric: Metric, f: Finding) -> MetricVerdict:
    series = metric.name if head.exact else metric.series
    was, now = (samples(tuple(r for r in b.runs if r.problem is None), series) for b in (base, head))
    a, b = (point(x, metric.quantile) if len(x) else None for x in (was, now))
    effect = None if f.effect is None else relative(f.effect.log)
    if head.exact and a and b:
        effect = b / a - 1 if metric.better == "lower" else a / b - 1
    low, high = f.effect.interval(f.alpha) if f.effect is not None and f.alpha is not None else (None, None)
    return MetricVerdict(
        bench=head.name,
        metric=metric.name,
        unit=metric.unit,
        better=metric.better,
        verdict=f.verdict,
        improved=f.improved,
        base=a,
        head=b,
        effect=effect,
        low=None if low is None else relative(low),
        high=None if high is None else relative(high),
        min_effect=None if f.min_effect is None else relative(f.min_effect.log),
        min_effect_from=None if f.min_effect is None else f.min_effect.source,
        p_worse=f.p_worse,
        p_not_worse=f.p_not_worse,
        blocks=f.blocks,
        look=f.look,
        reason=f.reason,
    )


def _notes(base: Result, head: Result, together: bool) -> list[str]:
    notes = []
    if together:
        drift = trend([p.at_s for p in head.probes], [p.seconds for p in head.probes])
        if drift is not None:
            notes.append(f"the machine drifted by {math.expm1(drift):+.1%} over the session (probes); both arms alike")
    for name in ("kernel", "driver", "python"):
        was, now = base.machine.get(name), head.machine.get(name)
        if was != now:
            notes.append(f"{name} changed from {was} to {now}")
    return notes
