"""Rules in data files: which rows they match, and what they say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from fwopt.score.table import Row, number, text


@dataclass(frozen=True, slots=True)
class Rule:
    """`where` maps a column to an exact value or, for text, a regular expression that must match it whole."""

    id: str
    reason: str
    where: dict[str, Any]
    set: dict[str, Any]
    only_fit: bool
    """Keeps rows out of the fit alone; they count in the figures."""

    def matches(self, row: Row) -> bool:
        return all(_equal(row, column, wanted) for column, wanted in self.where.items())


def _equal(row: Row, column: str, wanted: Any) -> bool:
    if isinstance(wanted, str):
        value = text(row, column)
        return value.lower() == wanted.lower() or re.fullmatch(wanted, value, re.IGNORECASE) is not None
    return number(row, column) == float(wanted)


@cache
def load_rules(name: str) -> tuple[Rule, ...]:
    """`exclusions` or `servers`."""
    content = yaml.safe_load(resources.files("fwopt.score").joinpath(f"data/{name}.yaml").read_text(encoding="utf-8"))
    return tuple(
        Rule(
            r.get("id", ""),
            r.get("reason", r.get("why", "")).strip(),
            r["where"],
            r.get("set", {}),
            r.get("only") == "fit",
        )
        for r in content["rules"]
    )


def excluded_by(row: Row) -> Rule | None:
    """The first exclusion from the figures that a row falls under."""
    return next((rule for rule in load_rules("exclusions") if not rule.only_fit and rule.matches(row)), None)


def teaches(row: Row) -> bool:
    """Whether a row may be fitted to."""
    return not any(rule.matches(row) for rule in load_rules("exclusions"))


def server_settings(row: Row) -> dict[str, Any]:
    """What the rules say of the row's server; earlier rules win."""
    settings: dict[str, Any] = {}
    for rule in load_rules("servers"):
        if rule.matches(row):
            settings = {**rule.set, **settings}
    return settings
