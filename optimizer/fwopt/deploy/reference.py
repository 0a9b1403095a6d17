"""Plan -> files for `fwopt serve`, the reference engine: the candidate itself, as YAML."""

from __future__ import annotations

import yaml

from fwopt.deploy.promises import one_line
from fwopt.deploy.shape import head, model_name, opening, surroundings
from fwopt.spec.plan import Entry, Plan

FILE = "candidate.yaml"
KERNELS = "kernels.yaml"
"""Beside it, where the candidate names tuned kernels."""


def render(plan: Plan) -> dict[str, str]:
    """File name -> text. Without a chosen entry there is nothing to deploy and no file."""
    entry = plan.chosen
    if entry is None:
        return {}
    texts = {FILE: candidate_file(plan, entry), **surroundings(plan, entry, "fwopt")}
    return {**texts, KERNELS: kernels_file(plan)} if entry.candidate.kernels is not None else texts


def candidate_file(plan: Plan, entry: Entry) -> str:
    """Every field of the candidate, defaults included, and the model beside them."""
    content = {"model": model_name(plan), **entry.candidate.model_dump(mode="json")}
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return "\n".join([*opening(plan, entry, "fwopt"), body])


def kernels_file(plan: Plan) -> str:
    """The set that candidates of the plan name, by content."""
    assert plan.kernels is not None
    what = f"# Kernel variants tuned on {one_line(plan.kernels.device_full_name)}; set {plan.kernels.digest}."
    content = plan.kernels.model_dump(mode="json")
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return "\n".join([*head(plan, what), body])
