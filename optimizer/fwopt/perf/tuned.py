"""Step times of the reference engine: operators of its profile, and of the kernels that a candidate runs with."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fwopt.errors import UnmeasuredError
from fwopt.perf.cost import CostModel
from fwopt.perf.costs import CostsOver
from fwopt.perf.grid import StepGrid
from fwopt.perf.kernel_times import KernelTimes, Which
from fwopt.spec.candidate import Candidate


@dataclass(slots=True)
class TunedCosts(CostsOver):
    """A cost model for each set of kernels that candidates name. Safe to call from several threads."""

    plain: CostModel
    times: KernelTimes
    _models: dict[tuple[Which, int | None, int], CostModel] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def grid(self, candidate: Candidate) -> StepGrid:
        """Without tuned kernels a GPU runs each kernel's default, which was timed as well; a processor runs torch."""
        if candidate.kernels is None:
            return self.plain.grid(candidate) if self.device.kind == "cpu" else self._grid(candidate, "default")
        if candidate.kernels != self.times.kernels.digest:
            raise UnmeasuredError(
                f"{candidate.label}: no times of the kernels {candidate.kernels} are here, those of "
                f"{self.times.profile.name} are {self.times.kernels.digest}; start a new run"
            )
        return self._grid(candidate, "chosen")

    def _grid(self, candidate: Candidate, which: Which) -> StepGrid:
        q, tp = candidate.quantization, candidate.parallelism.tp
        key = which, q.group_size if q.kind == "w4a16" else None, tp
        with self._lock:
            if key not in self._models:
                self._models[key] = self._built(*key)
        return self._models[key].grid(candidate)

    def _built(self, which: Which, group: int | None, tp: int) -> CostModel:
        plain = self.plain
        routing = plain.priors.moe.routing
        profile = self.times.over(plain.profile, which, group=group, tp=tp, routing=routing)
        return CostModel(
            plain.model, plain.device, plain.engine, profile, priors=plain.priors, calibration=plain.calibration
        )
