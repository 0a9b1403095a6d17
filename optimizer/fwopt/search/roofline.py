"""The bound rung: limits that no engine on this device could keep, whatever its kernels, before any simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fwopt.perf.bound import StepBound, minimum_replicas
from fwopt.perf.grid import Floats
from fwopt.spec.candidate import Candidate
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import Objective, Slo
from fwopt.spec.outcome import Rejected
from fwopt.workload.columns import Workload


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of one setting, whatever its replicas: the first limit out of reach, and the replicas that the work needs."""

    broken: tuple[Slo, float] | None
    replicas: float


@dataclass(slots=True)
class RooflineScreen:
    """Rejects what cannot keep a limit even with every weight read once and arithmetic at the vendor's peak."""

    model: ModelSpec
    device: DeviceSpec
    workload: Workload
    objective: Objective
    _known: dict[str, _Limits] = field(default_factory=dict)

    def check(self, candidate: Candidate) -> Rejected | None:
        if not self.objective.slos or candidate.speculation is not None:
            return None  # a step may give several tokens: what bounds a step bounds no token
        limits = self._limits(candidate)
        if limits.broken is not None:
            slo, least = limits.broken
            reason = f"cannot keep {slo} even at the roofline"
            return self._rejected(candidate, reason, least, slo.limit_s, "s")
        have = candidate.parallelism.replicas
        if limits.replicas > have:
            reason = "the work exceeds the time even at the roofline"
            return self._rejected(candidate, reason, math.ceil(limits.replicas), have, "replicas")
        return None

    def _rejected(self, candidate: Candidate, reason: str, need: float, have: float, unit: str) -> Rejected:
        return Rejected(candidate_id=candidate.id, rung="bound", reason=reason, need=need, have=have, unit=unit)

    def _limits(self, candidate: Candidate) -> _Limits:
        p, b = candidate.parallelism, candidate.batching
        key = f"{candidate.quantization} {candidate.kv_dtype} {p.tp} {p.dp} {p.ep} {b.max_num_seqs} {b.prefix_caching}"
        if key not in self._known:
            bound = StepBound.of(self.model, self.device, candidate)
            cached = b.prefix_caching and self.workload.block_tokens > 0
            self._known[key] = _Limits(self._broken(bound, cached), self._least_replicas(bound, candidate))
        return self._known[key]

    def _broken(self, bound: StepBound, cached: bool) -> tuple[Slo, float] | None:
        for slo in self.objective.slos:
            least = self._least_s(bound, slo, cached)
            if least is not None and least >= slo.limit_s:
                return slo, least
        return None

    def _least_s(self, bound: StepBound, slo: Slo, cached: bool) -> float | None:
        """The statistic if every request ran alone, its prompt `cached` but for one token or not at all. Refused
        requests count as infinite in quantiles, so leaving them in at their own bound keeps it a bound; a mean
        leaves them out, so only the fastest request bounds it."""
        prompt = self.workload.prompt_tokens.astype(np.float64)
        output = self.workload.output_tokens
        step = bound.token_s(1) + bound.decode_s(1.0, prompt) + bound.sample_s(1)
        new = np.ones(len(prompt)) if cached else prompt
        first = bound.token_s(new) + bound.prefill_s(prompt, prompt - new) + bound.sample_s(1)
        if slo.metric == "tpot":
            values: Floats = step[output > 1]
        elif slo.metric == "ttft":
            values = first
        elif slo.metric == "e2e":
            values = first + np.maximum(output - 1, 0) * step
        else:
            return None
        if len(values) == 0:
            return None
        return float(values.min() if slo.statistic == "mean" else np.quantile(values, slo.statistic))

    def _least_replicas(self, bound: StepBound, candidate: Candidate) -> float:
        found = _deadline(self.objective.slos, int(self.workload.output_tokens.max()))
        if found is None:
            return 0.0
        drain_s, share = found
        return minimum_replicas(bound, self.workload, candidate, drain_s, share)


def _deadline(slos: Sequence[Slo], longest_output: int) -> tuple[float, float] | None:
    """(seconds after its arrival, share of requests) by which so many are surely done if the quantile limits hold."""
    quantiles = [(s.metric, s.statistic, s.limit_s) for s in slos if s.statistic != "mean"]
    ends = [(limit, float(share)) for metric, share, limit in quantiles if metric == "e2e"]
    firsts = [(limit, float(share)) for metric, share, limit in quantiles if metric == "ttft"]
    gaps = [(limit, float(share)) for metric, share, limit in quantiles if metric == "tpot"]
    for first, first_share in firsts:
        for gap, gap_share in gaps:
            both = first_share + gap_share - 1
            if both > 0:
                ends.append((first + gap * max(longest_output - 1, 0), both))
    return min(ends, default=None)
