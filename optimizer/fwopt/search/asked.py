"""Small questions that the search asks of trials and candidates."""

from __future__ import annotations

from fwopt.spec.candidate import Candidate, Parallelism
from fwopt.spec.outcome import Evaluation, Rejected, Trial


def excess(outcome: Evaluation | Rejected) -> float | None:
    """How far the roofline is beyond what there is; None for everything that did not fall there."""
    if outcome.kind != "rejected" or outcome.rung != "bound" or not outcome.need or not outcome.have:
        return None
    return outcome.need / outcome.have


def never_fits(trial: Trial, utilization: float) -> bool:
    """The weights and working memory exceed the GPU at the highest memory fraction of the space too, by more than
    smaller batches could save."""
    outcome, used = trial.outcome, trial.candidate.batching.gpu_memory_utilization
    if outcome.kind != "rejected" or outcome.rung != "memory" or outcome.unit != "bytes":
        return False
    if not outcome.need or not outcome.have or "weights" not in outcome.reason:
        return False
    return outcome.need > 1.08 * outcome.have * utilization / used


def meets(outcome: Evaluation | Rejected) -> bool:
    return outcome.kind == "evaluation" and outcome.feasible


def with_replicas(candidate: Candidate, replicas: int) -> Candidate:
    parallelism = candidate.parallelism.model_copy(update={"replicas": replicas})
    return candidate.model_copy(update={"parallelism": parallelism})


def one_replica(layout: Parallelism) -> Parallelism:
    return layout.model_copy(update={"replicas": 1})
