"""Two servers' answers to the same items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fwopt import __version__
from fwopt.errors import InputError
from fwopt.evals.files import AGAINST, ANSWERS, Answers
from fwopt.evals.statistics import paired
from fwopt.spec.evals import EvalComparison, Graded, Paired


def compare(reference: Answers, this: Answers, *, margin: float) -> EvalComparison:
    """Item by item; InputError where they were not asked the same."""
    check_same(reference, this)
    seed = this.header.settings.seed
    groups: dict[str, list[str]] = {}
    for name, found in this.graded.items():
        groups.setdefault(found.group or "", []).append(name)
    return EvalComparison(
        fwopt_version=__version__,
        set=this.header.set,
        margin=margin,
        reference=reference.header,
        this=this.header,
        reference_file=str(reference.path),
        this_file=str(this.path),
        overall=_paired(reference.graded, this.graded, list(this.graded), margin, seed),
        by_group={
            group: _paired(reference.graded, this.graded, names, margin, seed)
            for group, names in groups.items()
            if len(groups) > 1 and group
        },
        reference_errors=reference.errors,
        this_errors=this.errors,
    )


def _paired(
    reference: Mapping[str, Graded], this: Mapping[str, Graded], names: list[str], margin: float, seed: int
) -> Paired:
    before, after = ([graded[name].score for name in names] for graded in (reference, this))
    return paired(before, after, margin=margin, seed=seed)


def check_same(reference: Answers, this: Answers) -> None:
    for answers in (reference, this):
        if not answers.complete:
            have = f"{len(answers.graded)} of {answers.header.items}"
            raise InputError(f"{answers.path}: holds {have} answers; finish it with --resume")
    before, after = reference.header, this.header
    if before.digest != after.digest or reference.graded.keys() != this.graded.keys():
        raise InputError(
            f"{reference.path}: its items are not those of set '{after.set}' as asked here ({before.digest} and "
            f"{after.digest}); ask both servers the same file, with the same --limit and --seed"
        )
    for name in ("api", "tools"):
        asked = getattr(before.settings, name)
        if asked != getattr(after.settings, name):
            raise InputError(f"{reference.path}: was asked with --{name} {asked}; ask both alike")


def comparison_path(this: Answers) -> Path:
    return this.path.with_name(this.path.name.removesuffix(ANSWERS) + AGAINST)
