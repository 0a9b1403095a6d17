"""What the plan's own simulation says of any workload, and of the same one under circumstances that were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import NothingFitsError
from fwopt.metrics.records import Records
from fwopt.perf.grid import StepGrid
from fwopt.perf.memory import KvCapacity
from fwopt.search.simulating import SimulatingEvaluator
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Rejected
from fwopt.verify.metrics import Compared, figures
from fwopt.workload.columns import Workload
from fwopt.workload.digest import with_digest

Adjust = Callable[[StepGrid], StepGrid]
Cached = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Promise:
    """One candidate's simulation."""

    evaluator: SimulatingEvaluator
    candidate: Candidate
    fit: KvCapacity
    pairs: Sequence[Compared]

    @classmethod
    def of(cls, evaluator: SimulatingEvaluator, candidate: Candidate, pairs: Sequence[Compared]) -> Promise:
        fit = evaluator.capacity(candidate)
        if isinstance(fit, Rejected):
            raise NothingFitsError(f"{candidate.label} would not start: {fit.reason}")
        return cls(evaluator, candidate, fit, pairs)

    def records(self, workload: Workload, adjust: Adjust | None = None, cached: Cached | None = None) -> Records:
        """`cached` (n,): prompt tokens that each request found cached, in place of what the simulation finds."""
        evaluator = self.evaluator.of(workload)
        return evaluator.replay(self.candidate, self.fit, 1.0, adjust, cached_tokens=cached).records

    def figures(self, workload: Workload) -> dict[str, float | None]:
        return figures(self.records(workload), self.pairs)

    def as_seen(
        self,
        workload: Workload,
        late_s: NDArray[np.float64],
        adjust: Adjust | None = None,
        cached: Cached | None = None,
    ) -> Records:
        """Of requests that were sent `late_s` after their time: latencies count from the schedule."""
        found = self.records(workload, adjust, cached)
        return replace(found, arrival_s=found.arrival_s - late_s)


def sent_at(workload: Workload, sent_s: NDArray[np.float64]) -> tuple[Workload, NDArray[np.int64]]:
    """The workload as it was really sent, in order of sending, and each of its requests' place in `workload`.
    Requests never sent (NaN) are left out."""
    order = np.argsort(sent_s, kind="stable")
    order = order[np.isfinite(sent_s[order])]
    lengths = np.diff(workload.block_offsets)[order]
    first = workload.block_offsets[:-1][order]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    where = np.arange(int(offsets[-1])) + np.repeat(first - offsets[:-1], lengths)
    columns = ("prompt_tokens", "output_tokens", "max_tokens", "session", "model", "adapter", "tools")
    moved = replace(
        workload,
        arrival_s=sent_s[order],
        block_offsets=offsets.astype(np.int64),
        block_ids=workload.block_ids[where],
        parent=np.full(len(order), -1, np.int32),
        **{name: getattr(workload, name)[order] for name in columns},
    )
    return with_digest(moved), order
