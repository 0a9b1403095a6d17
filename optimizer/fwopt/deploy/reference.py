"""Plan -> files for `fwopt serve`, the reference engine: the candidate itself, as YAML."""

from __future__ import annotations

import yaml

from fwopt.deploy.shape import model_name, opening, surroundings
from fwopt.spec.plan import Entry, Plan

FILE = "candidate.yaml"


def render(plan: Plan) -> dict[str, str]:
    """File name -> text. Without a chosen entry there is nothing to deploy and no file."""
    entry = plan.chosen
    if entry is None:
        return {}
    return {FILE: candidate_file(plan, entry), **surroundings(plan, entry, "fwopt")}


def candidate_file(plan: Plan, entry: Entry) -> str:
    """Every field of the candidate, defaults included, and the model beside them."""
    content = {"model": model_name(plan), **entry.candidate.model_dump(mode="json")}
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return "\n".join([*opening(plan, entry, "fwopt"), body])
