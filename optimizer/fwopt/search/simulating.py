"""The evaluator that `fwopt tune` uses: memory model, cost model and simulator put together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import UnmeasuredError
from fwopt.metrics.records import Records
from fwopt.metrics.summary import held_to, summarize
from fwopt.perf.costs import Costs
from fwopt.perf.effects import blocks_without, candidate_without, grid_without
from fwopt.perf.grid import StepGrid
from fwopt.perf.memory import KvCapacity, keeps_states, kv_capacity
from fwopt.search.scoring import EngineFacts, evaluate_metrics
from fwopt.sim.left_out import LeftOut
from fwopt.sim.simulator import SimResult, simulate
from fwopt.spec.candidate import Candidate
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.objective import Objective
from fwopt.spec.outcome import Evaluation, Rejected
from fwopt.spec.speculation import KnownDrafters, StepsTaken
from fwopt.workload import scale_rate
from fwopt.workload.columns import Workload

KEPT_SCALES = 8
"""Rescaled copies of the workload kept at a time: only arrivals differ, but a long trace has millions."""


@dataclass(slots=True)
class SimulatingEvaluator:
    """Replays one workload. Safe to call from several threads: the compiled loop releases the interpreter."""

    workload: Workload
    cost_model: Costs
    hardware: HardwareSpec
    objective: Objective
    off: frozenset[str] = frozenset()
    """Effects to leave out (`fwopt.perf.effects`); cost model and workload come without theirs."""
    drafters: KnownDrafters | None = None
    _scaled: dict[float, Workload] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, workload: Workload) -> Self:
        """The same for another workload."""
        return replace(self, workload=workload, _scaled={}, _lock=threading.Lock())

    def capacity(self, candidate: Candidate) -> KvCapacity | Rejected:
        draft = self.drafters.draft_model(candidate.speculation) if self.drafters is not None else None
        return kv_capacity(self.cost_model.model, self.hardware.device, candidate, self.cost_model.engine, draft)

    def check(self, candidate: Candidate) -> Rejected | None:
        """The memory rung: would the engine start at all?"""
        found = self.capacity(candidate)
        return found if isinstance(found, Rejected) else None

    def replay(
        self,
        candidate: Candidate,
        fit: KvCapacity,
        rate_scale: float,
        adjust: Callable[[StepGrid], StepGrid] | None = None,
        *,
        count: bool = False,
        cached_tokens: NDArray[np.int32] | None = None,
    ) -> SimResult:
        """Attention data-parallel ranks have schedulers and caches of their own: to the simulator they are replicas
        whose step times were computed for all ranks stepping together. `adjust` is asked for other step times;
        `count`: the steps by their shapes, too; `cached_tokens`: of each request, in place of what is shared."""
        parallelism = candidate.parallelism
        schedulers = parallelism.model_copy(update={"replicas": parallelism.replicas * parallelism.dp, "dp": 1})
        batching = candidate.batching.model_copy(update={"block_size": fit.block_size})
        model, off = self.cost_model.model, self.off
        blocks, sequence_blocks = blocks_without(fit, off, model, parallelism.tp)
        grid = grid_without(self.cost_model.grid(candidate), off, model, parallelism.tp)
        return simulate(
            self._at(rate_scale),
            grid if adjust is None else adjust(grid),
            blocks,
            candidate_without(candidate.model_copy(update={"parallelism": schedulers, "batching": batching}), off),
            candidate.batching.max_model_len or model.max_context_tokens,
            sequence_blocks=sequence_blocks,
            states=keeps_states(model, self.cost_model.engine) and "blocks" not in off,
            left_out=LeftOut.of(off),
            count=count,
            guesses=self._guesses(candidate),
            cached_tokens=cached_tokens,
        )

    def _guesses(self, candidate: Candidate) -> StepsTaken | None:
        if candidate.speculation is None:
            return None
        found = self.drafters.measured(candidate.speculation) if self.drafters is not None else None
        if found is None:
            raise UnmeasuredError(
                f"nobody measured how often {candidate.speculation.name} is right; run `fwopt speculation` and name "
                "its result with --speculation"
            )
        return found.steps

    def evaluate(
        self, candidate: Candidate, rate_scale: float = 1.0, adjust: Callable[[StepGrid], StepGrid] | None = None
    ) -> Evaluation | Rejected:
        fit = self.capacity(candidate)
        if isinstance(fit, Rejected):
            return fit
        try:
            result = self.replay(candidate, fit, rate_scale, adjust)
        except UnmeasuredError as error:
            return Rejected(candidate_id=candidate.id, rung="unmeasured", reason=str(error))
        return self.judge(candidate, result, fit.blocks, rate_scale)

    def judge(self, candidate: Candidate, result: SimResult, blocks: int, rate_scale: float) -> Evaluation:
        records: Records = result.records
        facts = EngineFacts(
            provenance=result.provenance,
            kv_blocks_per_replica=blocks * candidate.parallelism.dp,
            peak_kv_blocks=result.peak_kv_blocks,
            mean_batch=result.mean_batch,
            busy_share=result.busy_share,
        )
        return evaluate_metrics(
            candidate,
            summarize(records, self.objective.slos),
            lambda metric, which: held_to(records, metric, which),
            facts,
            objective=self.objective,
            hardware=self.hardware,
            window_s=self.workload.duration_s / rate_scale,
        )

    def _at(self, rate_scale: float) -> Workload:
        if rate_scale == 1.0:
            return self.workload
        with self._lock:
            if rate_scale not in self._scaled:
                while len(self._scaled) >= KEPT_SCALES:
                    self._scaled.pop(next(iter(self._scaled)))
                self._scaled[rate_scale] = scale_rate(self.workload, rate_scale)
            return self._scaled[rate_scale]
