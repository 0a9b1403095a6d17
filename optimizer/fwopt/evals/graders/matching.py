"""Whether a tool's argument is what was expected: a value, or a rule in its place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

RULES: dict[str, Callable[[Any, Any], bool]] = {
    "$any": lambda found, choices: any(matches(found, choice) for choice in choices),
    "$regex": lambda found, pattern: isinstance(found, str) and re.search(pattern, found) is not None,
    "$ignore_case": lambda found, text: isinstance(found, str) and found.strip().casefold() == text.strip().casefold(),
    "$near": lambda found, pair: _is_number(found) and math.isclose(found, pair[0], rel_tol=0, abs_tol=pair[1]),
    "$set": lambda found, members: isinstance(found, list) and same_members(found, members),
    "$anything": lambda found, _: True,
}
"""`{"$regex": "^Par"}` in place of a value. $any: one of several; $near: [number, tolerance]; $set: a list in any
order; $anything: given, whatever it is."""


def check_rules(expected: Any) -> None:
    """ValueError for a rule that is none."""
    if isinstance(expected, list):
        for entry in expected:
            check_rules(entry)
    if not isinstance(expected, dict):
        return
    rule = rule_of(expected)
    if rule is None:
        for value in expected.values():
            check_rules(value)
        return
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule}; known: {', '.join(RULES)}")
    given = expected[rule]
    if rule == "$regex":
        try:
            re.compile(given)
        except (re.error, TypeError) as error:
            raise ValueError(f"$regex {given!r} is no regular expression: {error}") from None
    elif rule == "$ignore_case" and not isinstance(given, str):
        raise ValueError(f"$ignore_case needs a text, got {given!r}")
    elif rule in ("$any", "$set") and not isinstance(given, list):
        raise ValueError(f"{rule} needs a list, got {given!r}")
    elif rule == "$near" and not (isinstance(given, list) and len(given) == 2 and all(map(_is_number, given))):
        raise ValueError(f"$near needs [number, tolerance], got {given!r}")


def rule_of(expected: dict[str, Any]) -> str | None:
    """The rule that a value with one key, beginning with `$`, is."""
    key = next(iter(expected)) if len(expected) == 1 else ""
    return key if key.startswith("$") else None


def matches(found: Any, expected: Any) -> bool:
    """Values are equal as JSON values are: 1 is 1.0 and not true."""
    if isinstance(expected, dict):
        rule = rule_of(expected)
        if rule is not None:
            return RULES[rule](found, expected[rule])
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(matches(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        same = isinstance(found, list) and len(found) == len(expected)
        return same and all(map(matches, found, expected))
    if _is_number(expected):
        return _is_number(found) and bool(found == expected)
    return type(found) is type(expected) and bool(found == expected)


def same_members(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and assignable(len(expected), lambda e, f: matches(found[f], expected[e]))


def assignable(count: int, fits: Callable[[int, int], bool]) -> bool:
    """Whether each of `count` expectations gets one of as many findings of its own (augmenting paths)."""
    holder: dict[int, int] = {}

    def place(expectation: int, tried: set[int]) -> bool:
        for finding in range(count):
            if finding not in tried and fits(expectation, finding):
                tried.add(finding)
                if finding not in holder or place(holder[finding], tried):
                    holder[finding] = expectation
                    return True
        return False

    return all(place(expectation, set()) for expectation in range(count))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
