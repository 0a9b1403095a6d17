"""A trace through the simulator. Equal inputs give equal figures, so a difference is a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from fwopt.errors import InputError, UnknownNameError
from fwopt.metrics.records import FINISHED
from fwopt.metrics.summary import statistic, summarize
from fwopt.regress.results import rounded
from fwopt.regress.samplers.base import Visit
from fwopt.regress.suite import metrics_of
from fwopt.spec.bench import Arm, ArmName, Metric, SimulatedBench
from fwopt.spec.bench_result import Key
from fwopt.spec.objective import LatencyMetric

if TYPE_CHECKING:
    from fwopt.search.simulating import SimulatingEvaluator
    from fwopt.sim.simulator import SimResult
    from fwopt.spec.candidate import Candidate

Prepare = Callable[..., Any]
"""From trace, configuration, model and hardware to a case with `candidate`, `evaluator`, `fit`: what `fwopt simulate`
does. The command line hands it in."""
_KNOWN = (*get_args(LatencyMetric), "throughput")


@dataclass(frozen=True, slots=True)
class _Case:
    candidate: Candidate
    evaluator: SimulatingEvaluator
    result: SimResult


class SimulatedSampler:
    """Satisfies `Sampler`."""

    exact = True
    notes = ("simulated: no noise",)

    def __init__(self, bench: SimulatedBench, arms: Mapping[ArmName, Arm], *, prepare: Prepare) -> None:
        self.bench, self.arms, self._prepare = bench, arms, prepare
        for metric in metrics_of(bench):
            if metric.series not in _KNOWN or metric.series == "queue":
                raise UnknownNameError("simulated metric", metric.series, [n for n in _KNOWN if n != "queue"])
        self._cases: dict[ArmName, _Case] = {}

    def key(self, arm: ArmName) -> Key:
        case = self._case(arm)
        costs, hardware = case.evaluator.cost_model, case.evaluator.hardware
        return Key(
            hardware=f"{hardware.device.name} x{hardware.count} (simulated)",
            engine=f"{costs.engine.name} {costs.engine.version}",
            model=f"{costs.model.name} {costs.model.config_digest}",
            workload=f"{case.evaluator.workload.digest} x{self.bench.rate_scale:g}",
            config=case.candidate.id,
        )

    def visit(self, arm: ArmName) -> Visit:
        case = self._case(arm)
        records = case.result.records
        samples: dict[str, tuple[float, ...]] = {}
        for metric in metrics_of(self.bench):
            value = self._value(case, metric)
            if value:  # None: the quantile falls among requests that were never answered
                samples[metric.name] = (rounded(value),)
        return Visit(samples, int((records.status != FINISHED).sum()), _parts(case.result))

    def __enter__(self) -> SimulatedSampler:
        return self

    def __exit__(self, *details: object) -> None:
        return

    def _value(self, case: _Case, metric: Metric) -> float | None:
        if metric.series == "throughput":
            return summarize(case.result.records).output_tokens_per_s
        name = next(n for n in get_args(LatencyMetric) if n == metric.series)
        return statistic(case.result.records, name, metric.quantile)

    def _case(self, arm: ArmName) -> _Case:
        if arm not in self._cases:
            run = self.arms[arm].run or self.bench.run
            self._cases[arm] = self._of_run(run) if run is not None else self._of_trace(arm)
        return self._cases[arm]

    def _of_run(self, run: Path) -> _Case:
        from fwopt.search.job import reopen
        from fwopt.search.run_folder import read_inputs, read_plan
        from fwopt.spec.outcome import Rejected

        plan = read_plan(run)
        entry = plan.chosen or plan.nearest_miss
        if entry is None:
            raise InputError(f"{run} holds no deployment to simulate (status {plan.status})")
        trace = self.bench.trace
        job = reopen(read_inputs(run), trace=trace, profiles=None, folder=run, same_traffic=trace is None)
        fit = job.evaluator.capacity(entry.candidate)
        if isinstance(fit, Rejected):
            raise InputError(f"{run}: {entry.candidate.label} would not start: {fit.reason}")
        result = job.evaluator.replay(entry.candidate, fit, self.bench.rate_scale)
        return _Case(entry.candidate, job.evaluator, result)

    def _of_trace(self, arm: ArmName) -> _Case:
        bench = self.bench
        if bench.trace is None:
            raise InputError(f"bench '{bench.name}': name a trace, or a run folder")
        case = self._prepare(
            bench.trace, config=self.arms[arm].config or bench.config, model=bench.model, hardware=bench.hardware,
            replicas=bench.replicas, router=None, rate_scale=bench.rate_scale, slos=(), price=None, format=None,
            skip_bad=False, only_model=None, profiles=None, engine=bench.engine,
        )  # fmt: skip
        return _Case(case.candidate, case.evaluator, case.evaluator.replay(case.candidate, case.fit, 1.0))


def _parts(result: SimResult) -> dict[str, float]:
    """Seconds of the average answered request."""
    records = result.records
    done = records.status == FINISHED
    if not done.any():
        return {}

    def mean(values: Any) -> float:
        return rounded(float(np.mean(values[done])))

    queue, prefill = records.scheduled_s - records.arrival_s, records.first_token_s - records.scheduled_s
    decode = records.finish_s - records.first_token_s
    host = result.host_share
    return {
        "queueing": mean(queue),
        "operator:prefill": mean(prefill * (1 - host)),
        "operator:decode": mean(decode * (1 - host)),
        "cpu gap:host": mean((prefill + decode) * host),
        "tokens:prefill": mean((records.prompt_tokens - records.cached_tokens).astype(np.float64)),
    }
