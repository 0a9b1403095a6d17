"""A finished run as its folder holds it: the plan and the trials behind it. Reading changes nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fwopt.errors import RunFolderError

if TYPE_CHECKING:
    from fwopt.spec.outcome import Trial
    from fwopt.spec.plan import Plan


def read_run(run: Path) -> tuple[Plan, list[Trial], Path]:
    """Plan, trials and folder of a run folder, or of the plan.json in it."""
    from pydantic import ValidationError

    from fwopt.search.run_folder import read_plan
    from fwopt.spec.outcome import Trial

    plan = read_plan(run)
    folder = run if run.is_dir() else run.parent
    path = folder / "trials.jsonl"
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "name the folder that `fwopt tune` wrote"
        raise RunFolderError(f"{path} cannot be read: {error.strerror}; {hint}") from None
    trials = []
    whole = data[: data.rfind(b"\n") + 1]  # a torn last line is a trial that never finished
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            trials.append(Trial.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RunFolderError(f"{path}:{number}: not a trial: {where}: {first['msg']}") from None
    return plan, trials, folder
