"""A finished run as its folder holds it: the plan and the trials behind it. Reading changes nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fwopt.spec.outcome import Trial
    from fwopt.spec.plan import Plan


def read_run(run: Path) -> tuple[Plan, list[Trial], Path]:
    """Plan, trials and folder of a run folder, or of the plan.json in it."""
    from fwopt.search.log import read_trials
    from fwopt.search.run_folder import read_plan

    plan = read_plan(run)
    folder = run if run.is_dir() else run.parent
    return plan, read_trials(folder / "trials.jsonl")[0], folder
