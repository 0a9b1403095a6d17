"""Two results in, a verdict on every metric out: the same whether samples come from a file or from a run in progress.

fail: significantly worse (Holm over the suite's metrics, alpha spent over looks) *and* by more than the minimum effect.
pass: evidence that it is not worse by the minimum effect (a non-inferiority test), not merely no evidence of harm.
inconclusive: neither. The first look that decides a metric decides it for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fwopt.regress.estimate import Effect, Floats, effect
from fwopt.regress.floor import from_noise, stated
from fwopt.regress.order import Block, Blocks, pair, split_equal
from fwopt.regress.sequential import LOST_SHARE, holm, levels, looks, planned
from fwopt.spec.bench import Metric, Rules
from fwopt.spec.bench_result import BenchResult, Run
from fwopt.spec.comparison import Verdict

FEWEST_AA_BLOCKS = 5
FEWEST_BEYOND = 5
"""Samples of each arm that must lie beyond a quantile: of fewer, one block decides the quantile and hides its error."""
Name = tuple[str, str]
"""(bench, metric)"""


@dataclass(frozen=True, slots=True)
class MinEffect:
    """The change that matters, in log units, and where it comes from."""

    log: float
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one metric."""

    verdict: Verdict
    reason: str
    effect: Effect | None = None
    min_effect: MinEffect | None = None
    p_worse: float | None = None
    p_not_worse: float | None = None
    improved: bool = False
    blocks: int = 0
    look: int | None = None
    alpha: float | None = None
    """One-sided level of the interval: what the look that decided may spend on a pass."""


@dataclass(slots=True)
class Trial:
    """One metric of one bench, ready to be looked at."""

    metric: Metric
    min_effect: MinEffect
    blocks: list[tuple[Floats, Floats]]
    seen: Effect | None = None
    finding: Finding | None = None
    _kept: dict[int, Effect] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Samples of each arm that a look takes."""
        q = self.metric.quantile
        return 1 if q == "mean" else math.ceil(FEWEST_BEYOND / min(q, 1 - q) - 1e-6)

    def samples(self, blocks: int) -> int:
        """Of the arm that has fewer, in the first so many blocks."""
        return min(sum(len(pair[arm]) for pair in self.blocks[:blocks]) for arm in (0, 1))

    def at(self, blocks: int, rules: Rules) -> Effect | None:
        """From the first so many blocks; None: too few samples lie beyond the quantile."""
        if self.samples(blocks) < self.needed:
            return None
        if blocks not in self._kept:
            self._kept[blocks] = effect(self.blocks[:blocks], self.metric, resamples=rules.resamples, seed=blocks)
        return self._kept[blocks]


def samples(runs: tuple[Run, ...], series: str) -> Floats:
    return np.asarray([value for run in runs for value in run.samples.get(series, ())], np.float64)


def blocks_of(paired: Blocks, series: str) -> list[tuple[Floats, Floats]]:
    """Both arms' samples, block by block; blocks in which an arm has none are left out."""

    def of(block: Block) -> tuple[Floats, Floats]:
        return samples(block.base, series), samples(block.head, series)

    return [(b, h) for b, h in map(of, paired.blocks) if len(b) and len(h)]


def noise_of(bench: BenchResult, metric: Metric, rules: Rules) -> Effect | None:
    """What A/A runs of the bench say of one metric; None: there are too few. A result of one arm is all A/A."""
    outer, inner = split_equal(bench.aa_runs or bench.runs)
    blocks = blocks_of(pair(outer, inner), metric.series)
    if len(blocks) < FEWEST_AA_BLOCKS:
        return None
    return effect(blocks, metric, resamples=rules.resamples, seed=len(blocks))


def min_effect(base: BenchResult, head: BenchResult, metric: Metric, rules: Rules) -> MinEffect | None:
    """Stated, or from A/A runs of either result; None: neither is there."""
    given = stated((metric.min_effect, rules.min_effect))
    if given is not None:
        return MinEffect(given, "stated")
    for bench in (base, head):
        noise = noise_of(bench, metric, rules)
        if noise is not None:
            return MinEffect(from_noise(noise, rules), "A/A")
    return None


def judge(trials: Mapping[Name, Trial], rules: Rules, *, ended: bool = True) -> dict[Name, Finding]:
    """All looks that the blocks allow, in order. `ended`: there will be no more blocks."""
    if not trials:
        return {}
    every = looks(rules)
    fails = levels(rules, rules.alpha * (1 - LOST_SHARE), len(trials))
    passes = levels(rules, rules.alpha_pass)
    due = {name: planned(rules, len(trial.blocks), ended=ended) for name, trial in trials.items()}
    for at in range(len(every)):
        now = {name: trials[name] for name, plan in due.items() if at < len(plan)}
        if not now:
            break
        for name, trial in now.items():
            trial.seen = trial.at(due[name][at], rules)
        worse = holm({name: t.seen.p_worse() if t.seen else 1.0 for name, t in trials.items()})
        better = holm({name: t.seen.p_better() if t.seen else 1.0 for name, t in trials.items()})
        for name, trial in now.items():
            if trial.finding is None and trial.seen is not None:
                trial.finding = _decide(trial, trial.seen, worse[name], better[name], fails[at], passes[at], at + 1)
    return {name: trial.finding or _open(trial, len(due[name]), passes, rules) for name, trial in trials.items()}


def _decide(
    trial: Trial, seen: Effect, worse: float, better: float, fails: float, passes: float, look: int
) -> Finding | None:
    """At one look, which may reject at the levels `fails` and `passes`: fail, pass, or None."""
    least = trial.min_effect
    not_worse = seen.p_better(least.log)
    base = Finding("pass", "", seen, least, worse, not_worse, blocks=seen.units, look=look, alpha=passes)
    if worse <= fails and seen.log > least.log:
        return replace(base, verdict="fail", reason="worse, significantly and by more than the minimum effect")
    if not_worse <= passes:
        improved = better <= fails and -seen.log > least.log
        words = "better, significantly and by more than the minimum effect"
        return replace(base, improved=improved, reason=words if improved else "not worse by the minimum effect")
    return None


def _open(trial: Trial, taken: int, passes: Sequence[float], rules: Rules) -> Finding:
    """No look decided."""
    seen, found = trial.seen, len(trial.blocks)
    if seen is None and found >= rules.min_blocks:
        reason = (
            f"{trial.samples(found)} samples of an arm in {found} blocks; {trial.metric.statistic} takes {trial.needed}"
            f" ({FEWEST_BEYOND} beyond it): take more a run, or a statistic nearer the middle"
        )
        return Finding("inconclusive", reason, min_effect=trial.min_effect, blocks=found)
    if seen is None:
        reason = f"{found} block{'s' * (found != 1)} of both arms, {rules.min_blocks} needed for a first look"
        return Finding("inconclusive", reason, min_effect=trial.min_effect, blocks=found)
    if taken < len(passes):
        reason = f"neither shown in {found} blocks; measuring ended before look {taken + 1} of {len(passes)}"
    elif seen.log > trial.min_effect.log:
        reason = f"looks worse, not significantly, in all {found} blocks"
    else:
        reason = f"neither a change beyond the minimum effect nor its absence is shown in all {found} blocks"
    return Finding(
        "inconclusive", reason, seen, trial.min_effect, p_worse=None, p_not_worse=seen.p_better(trial.min_effect.log),
        blocks=seen.units, alpha=passes[taken - 1],
    )  # fmt: skip
