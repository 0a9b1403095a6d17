"""How much a promise hangs on its step times: the chosen candidate again, every step a little longer."""

from __future__ import annotations

from fwopt.perf.grid import StepGrid
from fwopt.search.simulating import SimulatingEvaluator
from fwopt.spec.plan import Plan, Slower

FACTOR = 1.05
"""Machines differ by about this much from one hour to the next, and time per token from what is predicted on GPUs
(benchmarks/live.md, benchmarks/accuracy.md)."""


def with_slower_steps(plan: Plan, evaluator: SimulatingEvaluator) -> Plan:
    """The plan, its chosen entry with what would come of steps that take `FACTOR` times as long."""
    if plan.chosen is None:
        return plan
    found = evaluator.evaluate(plan.chosen.candidate, adjust=_slowed)
    if found.kind == "rejected":
        return plan
    slower = Slower(factor=FACTOR, evaluation=found)
    return plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"if_slower": slower})})


def _slowed(grid: StepGrid) -> StepGrid:
    return grid.scaled(FACTOR)
