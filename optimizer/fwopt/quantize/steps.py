"""On how many tokens the workload's steps compute: what times of products are weighed by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError, RunFolderError
from fwopt.targets.models import config_digest

MOST_FREQUENT, APART = 6, 8
"""Sizes to time where steps have too many: the most frequent, and further ones evenly apart in factors."""


@dataclass(frozen=True, slots=True)
class Steps:
    """`shares` of all steps compute on so many `tokens`."""

    tokens: NDArray[np.int64]
    """Ascending."""
    shares: NDArray[np.float64]
    says: str
    """How they are known."""

    def sizes(self) -> tuple[int, ...]:
        """Few enough to time each, ends included: between them times are interpolated."""
        if len(self.tokens) <= MOST_FREQUENT + APART:
            return tuple(self.tokens.tolist())
        frequent = self.tokens[np.argsort(-self.shares, kind="stable")[:MOST_FREQUENT]]
        wanted = np.geomspace(self.tokens[0], self.tokens[-1], APART)
        apart = self.tokens[np.abs(np.log(self.tokens[:, None] / wanted)).argmin(axis=0)]
        return tuple(np.union1d(frequent, apart).tolist())


def parse_steps(text: str) -> Steps:
    """`8:0.95,512:0.05`; shares are made to add up to one."""
    found: dict[int, float] = {}
    for part in text.split(","):
        size, _, share = part.partition(":")
        try:
            tokens, weight = int(size), float(share or 1.0)
        except ValueError:
            raise InputError(
                f"--step must be TOKENS or TOKENS:SHARE, by commas, or the folder of a run, got '{part}'"
            ) from None
        if tokens < 1 or not 0 < weight < float("inf"):
            raise InputError(f"--step: tokens and share must be above zero, got '{part}'")
        found[tokens] = found.get(tokens, 0.0) + weight
    shares = np.array([found[tokens] for tokens in sorted(found)])
    return Steps(np.array(sorted(found)), shares / shares.sum(), f"steps given by hand, {text}")


def steps_of_run(run: Path, source: Path) -> Steps:
    """Of what a run of `fwopt tune` chose, simulated again on its own trace. `source`: the model that is written."""
    from fwopt.search.job import reopen
    from fwopt.search.run_folder import read_inputs, read_plan
    from fwopt.spec.outcome import Rejected

    plan, folder = read_plan(run), run if run.is_dir() else run.parent
    if plan.chosen is None:
        raise InputError(f"{run}: this run chose nothing, so it has no steps to weigh by; give --step TOKENS:SHARE,…")
    digest = config_digest((source / "config.json").read_bytes())
    if plan.model.config_digest != digest:
        raise InputError(
            f"{run}: is of {plan.model.name} (config {plan.model.config_digest}), the model to write has config "
            f"{digest}; give a run of the same model, or --step TOKENS:SHARE,…"
        )
    inputs = read_inputs(folder)
    if not Path(inputs.trace).exists():
        raise RunFolderError(
            f"{folder}: its trace {inputs.trace} is not here (a path as given); start where that path holds, or give "
            "--step TOKENS:SHARE,…"
        )
    job = reopen(inputs, trace=None, profiles=None, folder=folder)
    candidate = plan.chosen.candidate
    fit = job.evaluator.capacity(candidate)
    assert not isinstance(fit, Rejected), "it was simulated when it was chosen"
    counts = job.evaluator.replay(candidate, fit, 1.0, count=True).steps
    assert counts is not None
    some = counts.tokens > 0
    tokens, shares = counts.tokens[some], counts.token_steps[some] / counts.token_steps[some].sum()
    sharded = candidate.parallelism.tp
    says = (
        f"the {counts.steps:,.0f} steps of {folder.name} simulated ({candidate.label}), of {tokens[0]:,} to "
        f"{tokens[-1]:,} tokens, {float(tokens @ shares):,.1f} in the mean"
    )
    return Steps(tokens, shares, says + (f"; matrices whole, not shared out over {sharded}" if sharded > 1 else ""))
