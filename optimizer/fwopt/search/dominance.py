"""Replicas only add capacity: what one count shows, the other counts need not be simulated for."""

from __future__ import annotations

from dataclasses import dataclass, field

from fwopt.spec.candidate import Candidate
from fwopt.spec.objective import QUALITY_METRICS, Objective
from fwopt.spec.outcome import Evaluation, Rejected

FAILS = "fails the limits even with more replicas"
POINTLESS = "meets the limits with fewer replicas"


@dataclass(slots=True)
class Dominance:
    """Among candidates alike but for `replicas` (and the router that spreads over them).

    A count that misses a limit rules out every smaller one. When only cost, GPUs or quality count under
    limits, a count that keeps them rules out every larger one. Assumes that adding a replica never makes a
    limit harder to keep; `fwopt tune` states so in the plan. Fed between batches only, so that what is
    skipped does not depend on how many workers there are.
    """

    objective: Objective
    _failed: dict[str, int] = field(default_factory=dict)
    _met: dict[str, int] = field(default_factory=dict)

    def observe(self, candidate: Candidate, outcome: Evaluation | Rejected) -> None:
        if not self.objective.slos or outcome.kind == "rejected":
            return
        key, replicas = _key(candidate), candidate.parallelism.replicas
        if outcome.feasible:
            self._met[key] = min(replicas, self._met.get(key, replicas))
        else:
            self._failed[key] = max(replicas, self._failed.get(key, replicas))

    def check(self, candidate: Candidate) -> Rejected | None:
        key, replicas = _key(candidate), candidate.parallelism.replicas
        failed, met = self._failed.get(key), self._met.get(key)
        if failed is not None and replicas < failed:
            return _rejected(candidate, FAILS, need=failed + 1)
        if met is not None and replicas > met and self._only_counts_gpus():
            return _rejected(candidate, POINTLESS, need=met)
        return None

    def _only_counts_gpus(self) -> bool:
        return all(goal.metric in ("cost", "gpus", *QUALITY_METRICS) for goal in self.objective.goals)


def _key(candidate: Candidate) -> str:
    return candidate.model_copy(
        update={"parallelism": candidate.parallelism.model_copy(update={"replicas": 1})}
    ).content_hash()


def _rejected(candidate: Candidate, reason: str, need: int) -> Rejected:
    have = candidate.parallelism.replicas
    return Rejected(candidate_id=candidate.id, rung="dominated", reason=reason, need=need, have=have, unit="replicas")
