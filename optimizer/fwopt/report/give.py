"""What would have to give for the nearest miss to become a plan."""

from __future__ import annotations

import math

from fwopt.metrics.records import REJECTED_CONTEXT, STATUS_NAMES
from fwopt.report import format as f
from fwopt.spec.outcome import Evaluation, SloResult
from fwopt.spec.plan import Entry, Plan


def what_would_give(plan: Plan, near: Entry) -> list[str]:
    """Each single change that would make the nearest miss a plan, as far as the evidence says. No number of GPUs
    serves what is longer than the model's context."""
    ways = []
    missed = [r for r in near.evaluation.slos if not r.met]
    slow = [r for r in missed if r.value_s is not None]
    if slow and len(slow) == len(missed):
        ways.append("relax to " + " ".join(f"--slo '{_relaxed(r)}'" for r in slow))
    if len(slow) < len(missed):
        ways.append(_refused(near.evaluation))
    edge = near.capacity
    if edge is not None and 0 < edge.rate_scale < 1:
        ways.append(f"serve {f.factor(edge.rate_scale)} of this traffic, where every SLO holds")
    too_long = len(slow) < len(missed) and set(near.evaluation.metrics.rejected) == {STATUS_NAMES[REJECTED_CONTEXT]}
    if near.candidate.parallelism.gpus == plan.hardware.count and not too_long:
        more = f"--hardware {f.plain(plan.hardware.device.name)}:{2 * plan.hardware.count}"
        ways.append(f"add GPUs: all {plan.hardware.count} are in use (try {more}), or faster ones")
    return ways


def _relaxed(result: SloResult) -> str:
    """The same SLO with a limit just above what was found, rounded up to two digits."""
    value = result.value_s or result.slo.limit_s
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    limit_s = round((math.floor(value / step) + 1) * step, 9)
    return str(result.slo.model_copy(update={"limit_s": limit_s}))


def _refused(evaluation: Evaluation) -> str:
    refused = evaluation.metrics.rejected
    total, asked = sum(refused.values()), evaluation.metrics.requests
    why = f.listing(f"{f.plain(reason)} ({n:,})" for reason, n in refused.items())
    return (
        f"{total:,} of {asked:,} requests are refused: {why}; every quantile above "
        f"p{100 * (1 - total / asked):.4g} is infinite, so leave them out of the trace or promise a lower quantile"
        if total
        else "requests are left unanswered, so the quantile is infinite; serve less traffic or add GPUs"
    )
