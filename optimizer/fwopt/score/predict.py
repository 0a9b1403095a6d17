"""One row's prediction: simulate its load, summarise as the row does."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import lru_cache

from fwopt.errors import FwoptError
from fwopt.metrics import summarize
from fwopt.perf.calibration import Calibration, load_calibration
from fwopt.perf.cost import CostModel
from fwopt.perf.effects import (
    blocks_without,
    calibration_without,
    candidate_without,
    grid_without,
    model_without,
    priors_without,
)
from fwopt.perf.memory import KvCapacity, keeps_states, kv_capacity
from fwopt.perf.store import Profile, load_profile
from fwopt.score.case import Case, Unscored
from fwopt.score.load import make_workload
from fwopt.sim import simulate
from fwopt.sim.left_out import LeftOut
from fwopt.sim.reserve import Reservation
from fwopt.sim.state import MIXED, PREFILL_FIRST
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.outcome import Rejected
from fwopt.spec.provenance import ProvenanceShares

_LOCK = threading.Lock()
SHORT_BY = 0.01
"""Share of the GPU's memory by which the estimate may miss what a server that ran must have had."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds and tokens per second."""

    ttft_mean_s: float
    ttft_p50_s: float
    tpot_mean_s: float | None
    output_tokens_per_s: float
    provenance: ProvenanceShares


@lru_cache(maxsize=8)
def _profile(device: DeviceSpec, engine: EngineSpec) -> Profile:
    return load_profile(device, engine)


@lru_cache(maxsize=64)
def _shipped(model: ModelSpec, device: DeviceSpec, engine: EngineSpec) -> CostModel:
    return CostModel(model, device, engine, _profile(device, engine))


class CostModels:
    """Cost models under one calibration, built when first asked for. Safe to share between threads."""

    def __init__(self, calibration: Calibration | None = None, off: frozenset[str] = frozenset()) -> None:
        """None: the shipped calibration. `off`: effects to leave out."""
        self._calibration = calibration
        self.off = off
        self._built: dict[tuple[ModelSpec, DeviceSpec, EngineSpec], CostModel] = {}

    def of(self, case: Case) -> CostModel:
        with _LOCK:
            key = (case.model, case.device, case.engine)
            if self._calibration is None and not self.off:
                return _shipped(*key)
            if key not in self._built:
                used = calibration_without(self._calibration or load_calibration(case.engine.name), self.off)
                profile, priors = _profile(case.device, case.engine), priors_without(self.off)
                self._built[key] = CostModel(
                    *key, profile, priors=priors, calibration=used, eager_all_reduce="eager-all-reduce" not in self.off
                )
            return self._built[key]


def _with_shorter_context(case: Case, longest: int) -> Case:
    """The server did start, so its context length was cut to what the load needs at most."""
    batching = case.candidate.batching.model_copy(update={"max_model_len": longest})
    return replace(case, candidate=case.candidate.model_copy(update={"batching": batching}))


def _least_it_started_with(case: Case, refused: Rejected) -> KvCapacity | Rejected:
    """The server did start with a stated context length, so its cache held one sequence of it: where our estimate of
    its working memory falls short of that by little, the least that it started with is taken."""
    missing = (refused.need or 0) - (refused.have or 0)
    if not 0 < missing < SHORT_BY * case.device.memory_bytes:
        return refused
    share = case.candidate.batching.gpu_memory_utilization + (missing + 1) / case.device.memory_bytes
    batching = case.candidate.batching.model_copy(update={"gpu_memory_utilization": share})
    return kv_capacity(case.model, case.device, case.candidate.model_copy(update={"batching": batching}), case.engine)


def predict(case: Case, models: CostModels) -> Prediction | Unscored:
    """Simulate the row's own load under its engine's own scheduling."""
    case = replace(case, model=model_without(case.model, models.off))
    try:
        cost = models.of(case)
    except FwoptError as error:
        return Unscored(f"no cost model: {error}")
    workload = make_workload(case.load, case.key)
    fit = kv_capacity(case.model, case.device, case.candidate, case.engine)
    if isinstance(fit, Rejected) and case.candidate.batching.max_model_len is None:
        case = _with_shorter_context(case, int((workload.prompt_tokens + workload.output_tokens).max()))
        fit = kv_capacity(case.model, case.device, case.candidate, case.engine)
    if isinstance(fit, Rejected) and case.candidate.batching.max_model_len is not None:
        fit = _least_it_started_with(case, fit)
    if isinstance(fit, Rejected):
        return Unscored(f"does not fit: {fit.reason}")
    try:
        grid = cost.grid(case.candidate)
    except FwoptError as error:
        return Unscored(f"no cost model: {error}")
    if not case.async_scheduling:  # the host's work of a step comes between steps
        serial_s = grid.serial_s + grid.step_cpu_s
        grid = replace(grid, async_scheduling=False, serial_s=serial_s, step_cpu_s=0.0)
    off, tp = models.off, case.candidate.parallelism.tp
    blocks, sequence_blocks = blocks_without(fit, off, case.model, tp)
    batching = case.candidate.batching.model_copy(update={"block_size": fit.block_size})
    result = simulate(
        workload,
        grid_without(grid, off, case.model, tp),
        blocks,
        candidate_without(case.candidate.model_copy(update={"batching": batching}), off),
        case.candidate.batching.max_model_len or case.model.max_context_tokens,
        policy=PREFILL_FIRST if case.engine.name == "sglang" and "prefill-first" not in off else MIXED,
        concurrency=case.load.concurrency if case.load.kind == "closed" else None,
        sequence_blocks=sequence_blocks,
        states=keeps_states(case.model, case.engine) and "blocks" not in off,
        left_out=LeftOut.of(off),
        reservation=Reservation() if case.engine.name == "sglang" and "reservation" not in off else None,
    )
    metrics = summarize(result.records)
    if metrics.rejected or metrics.ttft.mean_s is None or metrics.ttft.p50_s is None:
        return Unscored("the load does not fit the deployment")
    return Prediction(
        ttft_mean_s=metrics.ttft.mean_s,
        ttft_p50_s=metrics.ttft.p50_s,
        tpot_mean_s=metrics.tpot.mean_s,
        output_tokens_per_s=metrics.output_tokens_per_s,
        provenance=result.provenance,
    )
